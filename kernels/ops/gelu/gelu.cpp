#include "kernels/ops/gelu/gelu.h"

#include "kernels/ops/gelu/gelu_isa.h"

namespace nibble {

const std::vector<GeluKernel>& gelu_kernels() {
  static const std::vector<GeluKernel> kernels = {
#include "kernels/ops/gelu/kernels.inc"
  };
  return kernels;
}

const GeluKernel& select_gelu(uint32_t cpu_flags) {
  for (const GeluKernel& kernel : gelu_kernels()) {
    if ((kernel.flags & ~cpu_flags) == 0) return kernel;
  }
  return gelu_kernels().back();
}

}  // namespace nibble
