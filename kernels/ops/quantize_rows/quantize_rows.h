// Dynamic activation quantization: each row (token) to int8 under its own scale.
//
// a = max_k |x[t, k]|,  scale[t] = a / 127 (1 when that is 0),
// codes[t, k] = clamp(rint(x[t, k] / scale[t]), -127, 127)      the scheme int8n/r@f32
//
//   x       [tokens, K], finite; by a given scale NaN counts as the lowest code
//   codes   [tokens, stride], the first K of each row are written
//   scales  [tokens]
//
// The same under a scale that is given, calibrated (int8/t@f32, int8n/t@f32):
//   codes[t, k] = clamp(rint(x[t, k] / scale), lowest, 127)
//
// Every row of the table gives the same codes and scales, bit for bit (division, not a
// product with 1 / scale). Allocates nothing. Safe to call from any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/cpu.h"
#include "kernels/base/matrix_view.h"

namespace nibble {

using QuantizeRowsFunction = void (*)(MatrixView<const float> x, MatrixView<int8_t> codes,
                                      float* scales);

void quantize_rows_reference(MatrixView<const float> x, MatrixView<int8_t> codes,
                             float* scales);

using QuantizeRowsByFunction = void (*)(MatrixView<const float> x, float scale, int lowest,
                                        MatrixView<int8_t> codes);
void quantize_rows_by_reference(MatrixView<const float> x, float scale, int lowest,
                                MatrixView<int8_t> codes);

struct QuantizeRowsKernel {
  const char* name;
  uint32_t flags;
  QuantizeRowsFunction run;
  QuantizeRowsByFunction run_by;
};
const std::vector<QuantizeRowsKernel>& quantize_rows_kernels();
const QuantizeRowsKernel& select_quantize_rows(uint32_t cpu_flags = usable_cpu_flags());

}  // namespace nibble
