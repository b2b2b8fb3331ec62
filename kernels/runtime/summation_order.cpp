#include "kernels/runtime/summation_order.h"

#include <cstring>

#include "kernels/base/parallel.h"

namespace nibble {
namespace {

void reverse_runs(const std::byte* from, int64_t rows, int64_t runs, int64_t run_bytes,
                  std::byte* to) {
  parallel_for(rows, [&](int64_t r) {
    const std::byte* in = from + r * runs * run_bytes;
    std::byte* out = to + r * runs * run_bytes;
    for (int64_t i = 0; i < runs; ++i) {
      std::memcpy(out + i * run_bytes, in + (runs - 1 - i) * run_bytes,
                  static_cast<size_t>(run_bytes));
    }
  });
}

}  // namespace

LinearWeight with_reversed_columns(const LinearWeight& weight, int64_t run) {
  if (!weight.is_plain()) return weight;
  LinearWeight reversed = weight;
  const int64_t bytes = dtype_bytes(weight.plain.dtype);
  std::byte* to = nullptr;
  reversed.plain.bytes = Bytes::allocate(weight.plain.bytes.size(), &to);
  reverse_runs(weight.plain.bytes.data(), weight.rows, weight.cols / run, run * bytes,
               to);
  return reversed;
}

void reverse_columns(const float* from, int64_t rows, int64_t columns, int64_t run,
                     float* to) {
  reverse_runs(reinterpret_cast<const std::byte*>(from), rows, columns / run,
               run * static_cast<int64_t>(sizeof(float)),
               reinterpret_cast<std::byte*>(to));
}

}  // namespace nibble
