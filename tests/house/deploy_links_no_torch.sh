#!/usr/bin/env bash
# The deploy preset builds `nibble`, links no LibTorch, and says so where it would be needed.
#
#   deploy_links_no_torch.sh SOURCE_FOLDER JOBS
set -euo pipefail
cd "$1"
cmake --preset deploy > /dev/null
cmake --build --preset deploy -j "$2" > build/deploy/build.log 2>&1 || { tail -40 build/deploy/build.log; exit 1; }
nibble=build/deploy/nibble

libraries=$(ldd $nibble)
if grep -iE 'torch|libc10|mkl' <<< "$libraries"; then
  echo "build/deploy/nibble links LibTorch"
  exit 1
fi
$nibble --version
must_refuse() {
  local outcome=0 message
  message=$($nibble "$@" --output build/deploy/none 2>&1) || outcome=$?
  # 5: unsupported
  if ((outcome != 5)) || ! grep -q LibTorch <<< "$message"; then
    echo "nibble $1 must say that this build has no LibTorch and exit with 5"
    echo "it exited with $outcome: $message"
    exit 1
  fi
}
must_refuse quantize recipes/examples/stories --recipe w4a16-rtn
must_refuse train recipes/examples/stories --recipe float --data README.md
echo "no LibTorch linked; quantize and train say so"
