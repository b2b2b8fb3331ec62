// run_linear for one form; each is compiled in its own cuda_<form>.cu, which take long.
#pragma once

#include "kernels/ops/linear/cuda_linear.h"

namespace nibble::cuda {

template <LinearForm kForm>
Status run_linear_form(const LinearCall& call, const LinearPlan& plan, void* stream);

}  // namespace nibble::cuda
