#!/usr/bin/env bash
# `nibble` without LibTorch links none, and says so where it would be needed.
#
#   deploy_links_no_torch.sh SOURCE_FOLDER NIBBLE
set -euo pipefail
cd "$1"
nibble=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

libraries=$(ldd $nibble)
if grep -iE 'torch|libc10|mkl' <<< "$libraries"; then
  echo "$nibble links LibTorch"
  exit 1
fi
$nibble --version
must_refuse() {
  local outcome=0 message
  message=$($nibble "$@" --output "$scratch/none" 2>&1) || outcome=$?
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
