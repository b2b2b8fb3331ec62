#include "kernels/ops/quantize_rows/quantize_rows.h"

#include "kernels/ops/quantize_rows/quantize_rows_isa.h"

namespace nibble {

const std::vector<QuantizeRowsKernel>& quantize_rows_kernels() {
  static const std::vector<QuantizeRowsKernel> kernels = {
#include "kernels/ops/quantize_rows/kernels.inc"
  };
  return kernels;
}

const QuantizeRowsKernel& select_quantize_rows(uint32_t cpu_flags) {
  for (const QuantizeRowsKernel& kernel : quantize_rows_kernels()) {
    if ((kernel.flags & ~cpu_flags) == 0) return kernel;
  }
  return quantize_rows_kernels().back();
}

}  // namespace nibble
