#include "kernels/ops/linear/cuda_instantiate.h"

namespace nibble::cuda {

template Status run_linear_form<LinearForm::table4>(const LinearCall&, const LinearPlan&,
                                                    void*);

}  // namespace nibble::cuda
