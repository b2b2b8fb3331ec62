// The gate of a Llama MLP.
//
// y[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
//
// tolerance_spec: |y - reference| <= 8 * 2^-24 * |reference| + 2^-120 * |up|: the vector
// exp is within 2 units in the last place (ops/panel/vector_math.inc) and three roundings
// follow; a gate below -88 is taken for -88, where silu is not above 2^-120. y may be
// gate or up. Allocates nothing. Safe to call from any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/cpu.h"

namespace nibble {

using SiluMulFunction = void (*)(const float* gate, const float* up, int64_t n, float* y);

void silu_mul_reference(const float* gate, const float* up, int64_t n, float* y);

struct SiluMulKernel {
  const char* name;
  uint32_t flags;
  SiluMulFunction run;
};
const std::vector<SiluMulKernel>& silu_mul_kernels();
const SiluMulKernel& select_silu_mul(uint32_t cpu_flags = usable_cpu_flags());

}  // namespace nibble
