#!/usr/bin/env bash
# Fuzzes a reader under clang's libFuzzer with AddressSanitizer, beginning with its corpus.
#
#   fuzz.sh gguf [SECONDS]     300 seconds by default
#
# Needs clang++ and its run-time libraries (Debian: clang libclang-rt-14-dev), else exits 77.
# New inputs stay in build/fuzz/READER/corpus; one that breaks the reader is left in
# build/fuzz/READER as crash-*: put it into tests/fuzz/corpus/READER, which the tests replay.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
reader=$1 seconds=${2:-300}
clang=$(command -v clang++ || command -v clang++-14) || { echo "clang++ is required" >&2; exit 77; }
runtime=$($clang -print-file-name=libclang_rt.fuzzer-x86_64.a)
[[ -f $runtime || -f $($clang --print-resource-dir)/lib/linux/libclang_rt.fuzzer-x86_64.a ]] ||
  { echo "clang's libFuzzer is required (Debian: libclang-rt-14-dev)" >&2; exit 77; }
out=build/fuzz/$reader
mkdir -p "$out/objects" "$out/corpus"
flags=(-std=c++20 -I. -O1 -g1 -ffp-contract=off -fsanitize=address,undefined,fuzzer-no-link
  -fno-sanitize-recover=undefined)
sources=(kernels/base/*.cpp kernels/scheme/*.cpp kernels/tokenizer/*.cpp kernels/program/*.cpp
  kernels/ops/rope/*.cpp export/ggml/*.cpp export/gguf/*.cpp export/formats/gguf_metadata.cpp)
compile() {
  object=$1/$(tr / _ <<< "$2").o
  if [[ ! $object -nt $2 ]]; then "${@:3}" -c "$2" -o "$object"; fi
}
export -f compile
if command -v ccache > /dev/null; then clang="ccache $clang"; fi
# shellcheck disable=SC2086
printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -I{} bash -c 'compile "$@"' _ "$out/objects" {} $clang "${flags[@]}"
rm -f "$out/library.a"
ar rcs "$out/library.a" "$out"/objects/*.o
# shellcheck disable=SC2086
$clang "${flags[@]}" -fsanitize=fuzzer "tests/fuzz/${reader}_fuzz.cpp" "$out/library.a" \
  -lcrypto -lutf8proc -lpcre2-8 -lpthread -o "$out/fuzzer"
cd "$out"
./fuzzer -max_total_time="$seconds" -max_len=20000 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
  corpus "../../../tests/fuzz/corpus/$reader"
