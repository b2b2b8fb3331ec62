#include "kernels/ops/linear/cuda_instantiate.h"

namespace nibble::cuda {

template Status run_linear_form<LinearForm::int4>(const LinearCall&, const LinearPlan&,
                                                  void*);

}  // namespace nibble::cuda
