#include <algorithm>

#include "kernels/ops/reorder/reorder.h"

namespace nibble {

void transpose(const float* x, const std::vector<int64_t>& shape,
               const std::vector<int64_t>& perm, float* y) {
  const size_t rank = shape.size();
  std::vector<int64_t> strides(rank, 1);  // of x
  for (size_t a = rank; a-- > 1;) strides[a - 1] = strides[a] * shape[a];
  std::vector<int64_t> sizes(rank), steps(rank), index(rank, 0);  // of y's axes
  int64_t count = 1;
  for (size_t a = 0; a < rank; ++a) {
    sizes[a] = shape[static_cast<size_t>(perm[a])];
    steps[a] = strides[static_cast<size_t>(perm[a])];
    count *= sizes[a];
  }
  int64_t from = 0;
  for (int64_t i = 0; i < count; ++i) {
    y[i] = x[from];
    for (size_t a = rank; a-- > 0;) {  // the next index, last axis first
      from += steps[a];
      if (++index[a] < sizes[a]) break;
      from -= steps[a] * sizes[a];
      index[a] = 0;
    }
  }
}

void take_slice(const SliceShape& s, const float* x, float* y) {
  for (int64_t o = 0; o < s.outer; ++o) {
    for (int64_t i = 0; i < s.count; ++i, y += s.inner) {
      std::copy_n(x + (o * s.size + s.start + i * s.step) * s.inner, s.inner, y);
    }
  }
}

void reflect_pad(const float* x, int64_t rows, int64_t length, int64_t before,
                 int64_t after, float* y) {
  for (int64_t r = 0; r < rows; ++r, x += length) {
    for (int64_t i = 0; i < before; ++i) *y++ = x[before - i];
    y = std::copy_n(x, length, y);
    for (int64_t i = 0; i < after; ++i) *y++ = x[length - 2 - i];
  }
}

}  // namespace nibble
