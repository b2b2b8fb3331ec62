// Layer normalisation of rows, after a residual sum where there is one.
//
// h[t, d] = x[t, d] + added[t, d]                     (added.data null: h = x)
// y[t, d] = (h[t, d] - mean_d(h[t])) / sqrt(var_d(h[t]) + epsilon) * weight[d] + bias[d]
// var the mean of squares around the mean (biased).
//
//   x, added, y    [rows, D]; y may be x or added
//   weight, bias   [D]
//
// tolerance_spec, with s = sqrt(var + epsilon), n = |h - mean| / s, where D^1.5 mean|h|
// 2^-24 < 2 s:   |y - reference| <= (|weight| (2 D mean|h| / s + (D / 2 + 16) n) + 2 |y|
// + 2 |bias|) * 2^-24: the mean of D terms is off by at most D 2^-24 mean|h|, which moves
// the variance by its square only; D squares are summed, and halved by the root.
// Allocates nothing. Safe to call from any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/cpu.h"
#include "kernels/base/matrix_view.h"

namespace nibble {

using LayerNormFunction = void (*)(MatrixView<const float> x,
                                   MatrixView<const float> added, const float* weight,
                                   const float* bias, float epsilon, MatrixView<float> y);

void layer_norm_reference(MatrixView<const float> x, MatrixView<const float> added,
                          const float* weight, const float* bias, float epsilon,
                          MatrixView<float> y);  // sums in double

struct LayerNormKernel {
  const char* name;
  uint32_t flags;
  LayerNormFunction run;
};
const std::vector<LayerNormKernel>& layer_norm_kernels();
const LayerNormKernel& select_layer_norm(uint32_t cpu_flags = usable_cpu_flags());

}  // namespace nibble
