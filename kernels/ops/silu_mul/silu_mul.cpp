#include "kernels/ops/silu_mul/silu_mul.h"

#include "kernels/ops/silu_mul/silu_mul_isa.h"

namespace nibble {

const std::vector<SiluMulKernel>& silu_mul_kernels() {
  static const std::vector<SiluMulKernel> kernels = {
#include "kernels/ops/silu_mul/kernels.inc"
  };
  return kernels;
}

const SiluMulKernel& select_silu_mul(uint32_t cpu_flags) {
  for (const SiluMulKernel& kernel : silu_mul_kernels()) {
    if ((kernel.flags & ~cpu_flags) == 0) return kernel;
  }
  return silu_mul_kernels().back();
}

}  // namespace nibble
