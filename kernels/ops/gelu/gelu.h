// The Gaussian error linear unit, and its approximation by tanh.
//
//   gelu       y[i] = x[i] Phi(x[i]) = x[i] / 2 (1 + erf(x[i] / sqrt(2)))
//   gelu_tanh  y[i] = x[i] / 2 (1 + tanh(sqrt(2 / pi) (x[i] + 0.044715 x[i]^3)))
//
//   x, y  [n], may be the same memory
//
// tolerance_spec, both: |y - reference| <= 8 * 2^-24 * (min(|x|, 6) + |reference|): the
// vector erf and tanh are within 8 * 2^-24, and where they are nearly -1 that is the
// error of 1 + erf; below -6 the result is taken for one at -6, less than 2^-26.
// A NaN stays one. Allocates nothing. Safe to call from any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/cpu.h"

namespace nibble {

using GeluFunction = void (*)(const float* x, int64_t n, float* y);

void gelu_reference(const float* x, int64_t n, float* y);  // in double
void gelu_tanh_reference(const float* x, int64_t n, float* y);

struct GeluKernel {
  const char* name;
  uint32_t flags;
  GeluFunction run;
  GeluFunction run_tanh;
};
const std::vector<GeluKernel>& gelu_kernels();
const GeluKernel& select_gelu(uint32_t cpu_flags = usable_cpu_flags());

}  // namespace nibble
