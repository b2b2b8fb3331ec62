#!/usr/bin/env bash
# Runs the commands of README.md: every ```bash block that follows a line `<!-- runs -->`.
#
#   readme_commands.sh SOURCE_FOLDER NIBBLE
#
# From the repository's root, in order, in one shell each, stopping at the first that fails;
# `nibble` is NIBBLE. What the commands write goes under build/readme, which is emptied first.
set -euo pipefail
cd "$1"
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
ln -s "$2" "$tools/nibble"
export PATH=$tools:$PATH
rm -rf build/readme
mkdir -p build/readme

awk -v folder="$tools" '
  /^<!-- runs -->$/ { armed = 1; next }
  armed && /^```bash$/ { inside = 1; armed = 0; file = folder "/block" ++count; next }
  inside && /^```$/ { inside = 0; close(file); next }
  inside { print > file }
  armed && NF { print "README.md:" NR ": <!-- runs --> must be followed by a ```bash block"; exit 1 }
' README.md

count=0
for block in $(ls "$tools" | grep '^block' | sort -V); do
  count=$((count + 1))
  echo "--- block $count"
  cat "$tools/$block"
  if ! bash -euo pipefail "$tools/$block" < /dev/null > "$tools/output" 2>&1; then
    tail -30 "$tools/output"
    echo "README.md: block $count failed"
    exit 1
  fi
done
if ((count == 0)); then echo "README.md: no block is marked <!-- runs -->"; exit 1; fi
echo "$count blocks ran"
