#include "kernels/ops/rope/rope.h"

#include "kernels/ops/rope/rope_isa.h"

namespace nibble {

const std::vector<RopeKernel>& rope_kernels() {
  static const std::vector<RopeKernel> kernels = {
#include "kernels/ops/rope/kernels.inc"
  };
  return kernels;
}

const RopeKernel& select_rope(uint32_t cpu_flags) {
  for (const RopeKernel& kernel : rope_kernels()) {
    if ((kernel.flags & ~cpu_flags) == 0) return kernel;
  }
  return rope_kernels().back();  // the reference needs nothing
}

void apply_rope(const RopeKernel& kernel, MatrixView<float> x, const RopeTable& table,
                int64_t first, bool interleaved) {
  for (int64_t t = 0; t < x.rows; ++t) {
    kernel.run(x.row(t), x.cols / table.head_dim(), table.head_dim() / 2,
               table.cosines(first + t), table.sines(first + t), interleaved);
  }
}

}  // namespace nibble
