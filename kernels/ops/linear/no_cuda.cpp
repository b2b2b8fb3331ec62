#include "kernels/ops/linear/cuda_linear.h"
#include "kernels/ops/linear/cuda_plain.h"
#include "kernels/ops/linear/cuda_prefill.h"

namespace nibble::cuda {
namespace {

Status no_cuda() {
  return error(StatusCode::unsupported,
               "[linear] this build has no CUDA; build the preset `cuda`");
}

}  // namespace

Status run_linear(const LinearCall&, const LinearPlan&, void*) { return no_cuda(); }
Status run_dequantize(const DequantizeCall&, void*) { return no_cuda(); }
Status run_plain_linear(const PlainLinearCall&, void*) { return no_cuda(); }
Status run_unpack_codes(const UnpackCodesCall&, void*) { return no_cuda(); }
Status run_epilogue(const EpilogueCall&, void*) { return no_cuda(); }

}  // namespace nibble::cuda
