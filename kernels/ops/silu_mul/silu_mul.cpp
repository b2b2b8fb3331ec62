#include "kernels/ops/silu_mul/silu_mul.h"

#include "kernels/ops/silu_mul/silu_mul_isa.h"

namespace nibble {

const std::vector<SiluMulKernel>& silu_mul_kernels() {
  static const std::vector<SiluMulKernel> kernels = {
      {"silu_mul_f32__avx512vnni", kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni,
       avx512vnni::silu_mul},
      {"silu_mul_f32__avx2", kCpuAvx2, avx2::silu_mul},
      {"silu_mul_f32__reference", 0, silu_mul_reference},
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
