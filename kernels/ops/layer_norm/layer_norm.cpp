#include "kernels/ops/layer_norm/layer_norm.h"

#include "kernels/ops/layer_norm/layer_norm_isa.h"

namespace nibble {

const std::vector<LayerNormKernel>& layer_norm_kernels() {
  static const std::vector<LayerNormKernel> kernels = {
#include "kernels/ops/layer_norm/kernels.inc"
  };
  return kernels;
}

const LayerNormKernel& select_layer_norm(uint32_t cpu_flags) {
  for (const LayerNormKernel& kernel : layer_norm_kernels()) {
    if ((kernel.flags & ~cpu_flags) == 0) return kernel;
  }
  return layer_norm_kernels().back();
}

}  // namespace nibble
