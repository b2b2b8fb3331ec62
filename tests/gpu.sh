#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has CUDA 13, CMake, ninja and a C++20 compiler and
# reaches no package registry; with an importable torch that has CUDA, torch's operators too.
#
#   bash tests/gpu.sh [OUTPUT]     default build/gpu
#
# Builds from this tree alone, runs ctest -L cuda, compute-sanitizer (memcheck, racecheck) and the
# benchmarks, and leaves OUTPUT/report.md with every part's outcome and the tables. Exits non-zero
# if the build, a test or a sanitizer failed, and 77 where there is no GPU. It is made to take less
# than 10 minutes with 16 cores; each part has a limit of its own.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
output=${1:-build/gpu}
build=$output/build
mkdir -p "$output"
report=$output/report.md

if ! nvidia-smi -L > "$output/gpus.txt" 2>&1; then
  echo "skipped: nvidia-smi finds no GPU: $(cat "$output/gpus.txt")"
  exit 77
fi
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
torch_prefix=$(python3 -c 'import torch.utils; print(torch.utils.cmake_prefix_path)' 2> /dev/null)
{
  echo "# CUDA kernels"
  echo
  echo "$(cat "$output/gpus.txt"); driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1);" \
    "$(nvcc --version | sed -n 's/.*\(release [^,]*\).*/\1/p'); commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown)"
  echo
  echo "| part | outcome | seconds |"
  echo "|---|---|---|"
} > "$report"

failed=0
part() {  # part NAME LIMIT COMMAND...: a line of the report; the output goes to a file of its own
  local name=$1 limit=$2 start=$SECONDS outcome=passed
  shift 2
  echo "== $name"
  timeout "$limit" "$@" > "$output/$name.log" 2>&1
  local code=$?
  if ((code == 124)); then outcome="stopped after $limit s"; elif ((code != 0)); then outcome="FAILED ($code)"; fi
  if ((code != 0)); then failed=1; tail -40 "$output/$name.log"; fi
  echo "| $name | $outcome | $((SECONDS - start)) |" >> "$report"
  return "$code"
}
finish() {
  for table in "$output"/*bench*.log; do
    if [[ -f $table ]]; then echo; cat "$table"; fi
  done >> "$report"
  cat "$report"
  exit "$failed"
}

part configure 60 cmake -S tests/cuda -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  "-DCMAKE_CUDA_ARCHITECTURES=$capability-real" "-DCMAKE_PREFIX_PATH=$torch_prefix" ||
  part configure_without_torch 60 cmake -S tests/cuda -B "$build" -G Ninja --fresh \
    -DCMAKE_BUILD_TYPE=Release "-DCMAKE_CUDA_ARCHITECTURES=$capability-real" -DNIBBLE_WITH_TORCH=OFF ||
  finish
part build 420 cmake --build "$build" || finish
part ctest 180 ctest --test-dir "$build" -L cuda --output-on-failure || true
# The small cases alone: a sanitizer makes kernels some hundred times slower.
for tool in memcheck racecheck; do
  part "$tool" 150 compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/cuda_device_test" small || true
done
part bench 120 "$build/cuda_kernels_bench" || true
part bench_decode 120 "$build/cuda_decode_bench" || true
if [[ -n $torch_prefix ]]; then
  part bench_torch 120 python3 tests/cuda/torch_bench.py || true
fi
finish
