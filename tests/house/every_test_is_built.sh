#!/usr/bin/env bash
# Every tests/**/*_test.cpp is a source of some target of this build.
#
#   every_test_is_built.sh TESTS_FOLDER BUILT_LIST WITH_TORCH
#
# BUILT_LIST: the sources that CMake gave to targets, one a line. Without LibTorch the tests of
# ptq and qat are left out on purpose.
set -euo pipefail
tests=$1 built=$2 with_torch=$3
missing=0 count=0
while read -r file; do
  if [[ $with_torch != ON && $file =~ ^$tests/(ptq|qat)/ ]]; then continue; fi
  count=$((count + 1))
  if ! grep -qxF -- "$file" "$built"; then
    echo "not built: $file: no target has it; add its folder to tests/CMakeLists.txt"
    missing=1
  fi
done < <(find "$tests" -name '*_test.cpp' | sort)
if ((count == 0)); then echo "no test found in $tests"; exit 1; fi
if ((missing == 0)); then echo "$count test files, every one in a target"; fi
exit "$missing"
