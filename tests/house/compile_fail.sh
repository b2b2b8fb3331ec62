#!/usr/bin/env bash
# A file that must not compile: as it stands it compiles, with NIBBLE_MUST_FAIL it does not, and
# the compiler says what the file's first line announces.
#
#   compile_fail.sh FILE COMPILER FLAGS...
#
# First line of FILE:  // must fail: EXTENDED REGULAR EXPRESSION
set -euo pipefail
file=$1
shift
expected=$(sed -n '1s,^// must fail: ,,p' "$file")
[[ -n $expected ]] || { echo "$file:1: must be '// must fail: REGEX'"; exit 1; }
if ! "$@" -fsyntax-only "$file"; then
  echo "$file: must compile without NIBBLE_MUST_FAIL"
  exit 1
fi
outcome=0
message=$("$@" -fsyntax-only -DNIBBLE_MUST_FAIL "$file" 2>&1) || outcome=$?
if ((outcome == 0)); then
  echo "$file: compiled with NIBBLE_MUST_FAIL; it must not"
  exit 1
fi
if ! grep -qE -- "$expected" <<< "$message"; then
  echo "$file: failed with another message than /$expected/:"
  echo "$message"
  exit 1
fi
echo "refused: $(grep -m1 -E -- "$expected" <<< "$message")"
