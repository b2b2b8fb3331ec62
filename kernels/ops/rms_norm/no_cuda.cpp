#include "kernels/ops/rms_norm/cuda_rms_norm.h"

namespace nibble::cuda {

Status run_rms_norm(const RmsNormCall&, void*) {
  return error(StatusCode::unsupported,
               "[rms_norm] this build has no CUDA; build the preset `cuda`");
}

}  // namespace nibble::cuda
