#include "kernels/ops/fake_quantize/cuda_fake_quantize.h"

namespace nibble::cuda {
namespace {

Status no_cuda() {
  return error(StatusCode::unsupported,
               "[fake_quantize] this build has no CUDA; build the preset `cuda`");
}

}  // namespace

Status run_fake_quantize(const FakeQuantizeCall&, void*) { return no_cuda(); }
Status run_fake_quantize_gradient(const FakeQuantizeGradientCall&, void*) {
  return no_cuda();
}

}  // namespace nibble::cuda
