#!/usr/bin/env bash
# cmake --install, then the examples as a project of its own that finds nibble there.
#
#   installs.sh SOURCE_FOLDER BUILD_FOLDER
set -euo pipefail
source=$1 build=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fail() { echo "installs: $*" >&2; exit 1; }
cmake --install "$build" --prefix "$scratch/prefix" > "$scratch/log" 2>&1 || { cat "$scratch/log"; fail "cmake --install failed"; }
for file in bin/nibble share/man/man1/nibble.1 share/bash-completion/completions/nibble \
  share/zsh/site-functions/_nibble lib/cmake/nibble/nibbleConfig.cmake include/nibble/kernels/program/ops.inc; do
  [[ -s $scratch/prefix/$file ]] || fail "$file was not installed"
done
"$scratch/prefix/bin/nibble" --version | grep -q '^nibble ' || fail "the installed command does not run"
# The headers must come from the prefix: the source folder is not given.
cp -r "$source/recipes/examples" "$scratch/examples"
cmake -S "$scratch/examples" -B "$scratch/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DNIBBLE_WITH_TORCH=OFF \
  -DCMAKE_PREFIX_PATH="$scratch/prefix" > "$scratch/log" 2>&1 || { cat "$scratch/log"; fail "find_package(nibble) failed"; }
cmake --build "$scratch/build" > "$scratch/log" 2>&1 || { cat "$scratch/log"; fail "the examples do not build"; }
"$scratch/build/quantize_matrix" | grep -q '^int4/g128@f16: 4.125 bits' || fail "quantize_matrix does not run"
"$scratch/build/run_artifact" "$source/recipes/examples/stories" "One day" | grep -q 'One day' || fail "run_artifact does not run"
