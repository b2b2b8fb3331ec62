// The vector versions of RMS normalisation, an instruction set each
// (ops/rms_norm/rms_norm.h).
#pragma once

#include "kernels/base/matrix_view.h"

namespace nibble {

namespace avx2 {
void rms_norm(MatrixView<const float> x, const float* weight, float epsilon,
              MatrixView<float> y);
}
namespace avx512vnni {
void rms_norm(MatrixView<const float> x, const float* weight, float epsilon,
              MatrixView<float> y);
}

}  // namespace nibble
