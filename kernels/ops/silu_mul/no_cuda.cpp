#include "kernels/ops/silu_mul/cuda_silu_mul.h"

namespace nibble::cuda {

Status run_silu_mul(const SiluMulCall&, void*) {
  return error(StatusCode::unsupported,
               "[silu_mul] this build has no CUDA; build the preset `cuda`");
}

}  // namespace nibble::cuda
