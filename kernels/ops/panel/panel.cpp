#include "kernels/ops/panel/panel.h"

#include <algorithm>
#include <cstring>

namespace nibble {

void pack_rows(const float* x, int64_t stride, int64_t n, int64_t k, int mr,
               float* packed) {
  // A cache line of a row at a time: what it becomes stays near until its lines are
  // whole.
  constexpr int64_t kStep = 16;
  for (int64_t first = 0; first < k; first += kStep) {
    const int64_t count = std::min(kStep, k - first);
    float* to = packed + first * mr;
    for (int m = 0; m < mr; ++m, ++to) {
      if (m < n) {
        const float* row = x + m * stride + first;
        for (int64_t i = 0; i < count; ++i) to[i * mr] = row[i];
      } else {
        for (int64_t i = 0; i < count; ++i) to[i * mr] = 0;
      }
    }
  }
}

void pack_codes(const PanelIsa& isa, const int8_t* codes, int64_t stride, int64_t n,
                int64_t steps, int mr, int32_t* packed) {
  const int64_t width = mr * isa.dwords;
  // What a cache line of a row becomes, row by row: a few lines that stay near.
  constexpr int64_t kSteps = 16;
  for (int64_t first = 0; first < steps; first += kSteps) {
    const int64_t end = std::min(steps, first + kSteps);
    for (int m = 0; m < mr; ++m) {
      const int8_t* row = codes + m * stride;
      int32_t* out = packed + first * width + m * isa.dwords;
      if (m >= n) {
        for (int64_t s = first; s < end; ++s, out += width)
          std::memset(out, 0, static_cast<size_t>(isa.dwords) * sizeof(int32_t));
      } else if (isa.dwords == 1) {
        for (int64_t s = first; s < end; ++s, out += width)
          std::memcpy(out, row + s * 4, 4);
      } else {
        // Without VNNI a step is two 16-bit pairs: even codes, then odd ones, because the
        // weight bytes are widened by masking (even) and shifting (odd).
        for (int64_t s = first; s < end; ++s, out += width) {
          const int8_t* q = row + s * 4;
          const int16_t pairs[4] = {q[0], q[2], q[1], q[3]};
          std::memcpy(out, pairs, 8);
        }
      }
    }
  }
}

}  // namespace nibble
