#include "kernels/ops/linear/cuda_linear.h"

namespace nibble::cuda {
namespace {

Status no_cuda() {
  return error(StatusCode::unsupported,
               "[linear] this build has no CUDA; build the preset `cuda`");
}

}  // namespace

Status run_linear(const LinearCall&, const LinearPlan&, void*) { return no_cuda(); }
Status run_dequantize(const DequantizeCall&, void*) { return no_cuda(); }

}  // namespace nibble::cuda
