// The vector versions of dynamic activation quantization
// (ops/quantize_rows/quantize_rows.h).
#pragma once

#include <cstdint>

#include "kernels/base/matrix_view.h"

namespace nibble {

namespace avx2 {
void quantize_rows(MatrixView<const float> x, MatrixView<int8_t> codes, float* scales);
void quantize_rows_by(MatrixView<const float> x, float scale, int lowest,
                      MatrixView<int8_t> codes);
}
namespace avx512vnni {
void quantize_rows(MatrixView<const float> x, MatrixView<int8_t> codes, float* scales);
void quantize_rows_by(MatrixView<const float> x, float scale, int lowest,
                      MatrixView<int8_t> codes);
}

}  // namespace nibble
