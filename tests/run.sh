#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: first the release build with everything,
# then kernels, export and the damaged files under AddressSanitizer and UBSan.
#
#   bash tests/run.sh
#
# Ends with how long each part took and the two summaries of ctest; exits non-zero if any failed. A
# test that failed is named at the very end and run once more, alone, so that its output stands where
# a reader looks first, and so that a failure that comes and goes shows as one. It stays a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

jobs=${NIBBLE_JOBS:-$(nproc)}
times=()
failed=0
stage() {  # stage NAME COMMAND...: runs it, remembers how long it took and whether it failed
  local name=$1 start=$SECONDS outcome=0
  shift
  echo "== $name"
  "$@" || outcome=1
  times+=("$(printf '%4d s  %s' $((SECONDS - start)) "$name$( ((outcome == 0)) || echo ' (FAILED)')")")
  failed=$((failed | outcome))
  return "$outcome"
}
must() {  # a stage that the next ones need
  stage "$@" || finish
}
again() {  # again PRESET: the failed tests' names and, run alone, their output
  local log=build/$1/ctest.log
  grep -q '^The following tests FAILED:' "$log" 2>/dev/null || return 0
  sed -n '/^The following tests FAILED:/,/^$/p' "$log"
  echo "== once more, alone ($1)"
  timeout 300 ctest --preset "$1" -j 1 --rerun-failed 2>&1 | tail -n 80 || true
}
finish() {
  echo "== times"
  printf '%s\n' "${times[@]}"
  for log in build/release/ctest.log build/asan/ctest.log; do
    if [[ -f $log ]]; then grep -E 'tests passed|^Total Test time' "$log" || true; fi
  done
  again release
  again asan
  exit "$failed"
}
run_ctest() {  # run_ctest PRESET
  ctest --preset "$1" -j "$jobs" -LE "^long$" 2>&1 | tee "build/$1/ctest.log"
}

mkdir -p build
rm -f build/release/ctest.log build/asan/ctest.log
must "setup" bash tests/setup.sh tests
must "configure release" cmake --preset release -DNIBBLE_BUILD_TESTS=ON
must "build release" cmake --build --preset release -j "$jobs"
stage "test release" run_ctest release || true
must "configure asan" cmake --preset asan
must "build asan" cmake --build --preset asan -j "$jobs" --target sanitized_tests
stage "test asan" run_ctest asan || true
finish
