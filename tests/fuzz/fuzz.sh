#!/usr/bin/env bash
# Fuzzes a reader under clang's libFuzzer with AddressSanitizer, beginning with its corpus.
#
#   fuzz.sh READER [SECONDS]     300 seconds by default; readers: tests/fuzz/readers.h
#   fuzz.sh all [SECONDS]        every folder of tests/fuzz/corpus, one after the other
#
# Needs clang++ and its run-time libraries (Debian: clang libclang-rt-14-dev), and a build of any
# preset, which made ONNX's protobuf sources; else exits 77.
# New inputs stay in build/fuzz/READER/corpus; one that breaks the reader is left in
# build/fuzz/READER as crash-*: put it into tests/fuzz/corpus/READER, which the tests replay.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
reader=$1 seconds=${2:-300}
if [[ $reader == all ]]; then
  for folder in tests/fuzz/corpus/*; do
    bash tests/fuzz/fuzz.sh "$(basename "$folder")" "$seconds"
  done
  exit
fi
[[ -d tests/fuzz/corpus/$reader ]] || { echo "fuzz.sh: tests/fuzz/corpus has no $reader" >&2; exit 2; }
clang=$(command -v clang++ || command -v clang++-14) || { echo "clang++ is required" >&2; exit 77; }
runtime=$($clang -print-file-name=libclang_rt.fuzzer-x86_64.a)
[[ -f $runtime || -f $($clang --print-resource-dir)/lib/linux/libclang_rt.fuzzer-x86_64.a ]] ||
  { echo "clang's libFuzzer is required (Debian: libclang-rt-14-dev)" >&2; exit 77; }
generated=$(ls -dt build/*/generated 2> /dev/null | head -n 1)
[[ -f $generated/onnx.pb.cc ]] || { echo "a build is required (cmake --preset release; its nibble target)" >&2; exit 77; }
out=build/fuzz/$reader objects=build/fuzz/objects
mkdir -p "$objects" "$out/corpus"
flags=(-std=c++20 -I. -isystem "$generated" -O1 -g1 -ffp-contract=off -fsanitize=address,undefined,fuzzer-no-link
  -fno-sanitize-recover=undefined)
sources=(kernels/base/*.cpp kernels/scheme/*.cpp kernels/packing/*.cpp kernels/artifact/*.cpp
  kernels/tokenizer/*.cpp kernels/program/*.cpp kernels/ops/rope/reference.cpp export/ggml/*.cpp
  export/gguf/*.cpp export/huggingface/checkpoint.cpp export/formats/gguf_metadata.cpp
  kernels/runtime/integer_node.cpp export/huggingface/static_caches.cpp "$generated/onnx.pb.cc"
  export/onnx/{description,described_model,onnx_graph,formula,symbolic,import*}.cpp
  export/formats/{nibble,compressed_tensors,gptq,awq,bitsandbytes,fp8,modelopt,onnx}_read.cpp)
# load_model and gguf reach for the writers; the fuzzed readers do not.
for source in recipes/models/*.cpp; do
  [[ $source == */load_model.cpp || $source == */gguf.cpp ]] || sources+=("$source")
done
compile() {
  object=$1/$(tr / _ <<< "$2").o
  if [[ ! $object -nt $2 ]]; then "${@:3}" -c "$2" -o "$object"; fi
}
export -f compile
if command -v ccache > /dev/null; then clang="ccache $clang"; fi
# shellcheck disable=SC2086
printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -I{} bash -c 'compile "$@"' _ "$objects" {} $clang "${flags[@]}"
rm -f "$out/library.a"
for source in "${sources[@]}"; do echo "$objects/$(tr / _ <<< "$source").o"; done | xargs ar rcs "$out/library.a"
# shellcheck disable=SC2086
$clang "${flags[@]}" -fsanitize=fuzzer "-DNIBBLE_FUZZED=\"$reader\"" tests/fuzz/fuzzer.cpp "$out/library.a" \
  -lcrypto -lutf8proc -lpcre2-8 -lprotobuf -lpthread -o "$out/fuzzer"
# The files of a directory's reader go to memory.
if [[ -d /dev/shm ]]; then export TMPDIR=/dev/shm; fi
cd "$out"
./fuzzer -max_total_time="$seconds" -max_len=50000 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
  corpus "../../../tests/fuzz/corpus/$reader"
