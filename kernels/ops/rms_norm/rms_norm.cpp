#include "kernels/ops/rms_norm/rms_norm.h"

#include "kernels/ops/rms_norm/rms_norm_isa.h"

namespace nibble {

const std::vector<RmsNormKernel>& rms_norm_kernels() {
  static const std::vector<RmsNormKernel> kernels = {
#include "kernels/ops/rms_norm/kernels.inc"
  };
  return kernels;
}

const RmsNormKernel& select_rms_norm(uint32_t cpu_flags) {
  for (const RmsNormKernel& kernel : rms_norm_kernels()) {
    if ((kernel.flags & ~cpu_flags) == 0) return kernel;
  }
  return rms_norm_kernels().back();
}

}  // namespace nibble
