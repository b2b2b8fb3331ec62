#include "kernels/ops/next_token/cuda_next_token.h"

namespace nibble::cuda {

Status run_next_token(const NextTokenCall&, void*) {
  return error(StatusCode::unsupported,
               "[next_token] this build has no CUDA; build the preset `cuda`");
}

}  // namespace nibble::cuda
