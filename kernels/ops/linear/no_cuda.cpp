#include "kernels/ops/linear/cuda_linear.h"

namespace nibble::cuda {

Status run_linear(const LinearCall&, const LinearPlan&, void*) {
  return error(StatusCode::unsupported,
               "[linear] this build has no CUDA; build the preset `cuda`");
}

}  // namespace nibble::cuda
