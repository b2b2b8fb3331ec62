#include "kernels/ops/rope/cuda_rope.h"

namespace nibble::cuda {

Status run_rope(const RopeCall&, void*) {
  return error(StatusCode::unsupported,
               "[rope] this build has no CUDA; build the preset `cuda`");
}

}  // namespace nibble::cuda
