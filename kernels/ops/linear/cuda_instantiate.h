// The definition behind cuda_forms.h, for the cuda_<form>.cu files.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/ops/linear/cuda_dispatch.h"
#include "kernels/ops/linear/cuda_forms.h"

namespace nibble::cuda {

template <LinearForm kForm>
Status run_linear_form(const LinearCall& call, const LinearPlan& plan, void* stream) {
  StreamLauncher launcher{"linear", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_linear_form<kForm>(call, plan, launcher));
  return launcher.status;
}

}  // namespace nibble::cuda
