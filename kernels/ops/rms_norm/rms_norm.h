// Root-mean-square normalisation of rows.
//
// y[t, d] = x[t, d] * (1 / sqrt(mean_d(x[t, d]^2) + epsilon)) * weight[d]
//
//   x, y    [rows, D], may be the same memory
//   weight  [D]
//
// tolerance_spec: |y - reference| <= (D / 2 + 8) * 2^-24 * |reference|: the D squares are
// summed in f32 (all terms positive, so the relative error of the sum is at most D *
// 2^-24, halved by the square root) and three more roundings follow. Allocates nothing.
// Safe to call from any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/cpu.h"
#include "kernels/base/matrix_view.h"

namespace nibble {

using RmsNormFunction = void (*)(MatrixView<const float> x, const float* weight,
                                 float epsilon, MatrixView<float> y);

void rms_norm_reference(MatrixView<const float> x, const float* weight, float epsilon,
                        MatrixView<float> y);  // the sum in double

struct RmsNormKernel {
  const char* name;
  uint32_t flags;
  RmsNormFunction run;
};
const std::vector<RmsNormKernel>& rms_norm_kernels();
const RmsNormKernel& select_rms_norm(uint32_t cpu_flags = usable_cpu_flags());

}  // namespace nibble
