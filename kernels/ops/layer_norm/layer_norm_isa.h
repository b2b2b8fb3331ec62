// The vector versions of layer normalisation, an instruction set each
// (ops/layer_norm/layer_norm.h).
#pragma once

#include "kernels/base/matrix_view.h"

namespace nibble {

namespace avx2 {
void layer_norm(MatrixView<const float> x, MatrixView<const float> added,
                const float* weight, const float* bias, float epsilon,
                MatrixView<float> y);
}
namespace avx512vnni {
void layer_norm(MatrixView<const float> x, MatrixView<const float> added,
                const float* weight, const float* bias, float epsilon,
                MatrixView<float> y);
}

}  // namespace nibble
