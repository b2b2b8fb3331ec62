#include "kernels/ops/elementwise/cuda_elementwise.h"

namespace nibble::cuda {

Status run_elementwise(const AddCall&, void*) {
  return error(StatusCode::unsupported,
               "[elementwise] this build has no CUDA; build the preset `cuda`");
}

}  // namespace nibble::cuda
