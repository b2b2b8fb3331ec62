#include "kernels/ops/embedding/cuda_embedding.h"

namespace nibble::cuda {

Status run_embedding(const EmbeddingCall&, void*) {
  return error(StatusCode::unsupported,
               "[embedding] this build has no CUDA; build the preset `cuda`");
}

}  // namespace nibble::cuda
