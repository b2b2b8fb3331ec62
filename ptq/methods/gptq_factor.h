// What GPTQ (gptq.cpp) derives from a layer's inputs before it rounds anything: the
// damped Hessian's inverse factor, and the weights that rounding should come close to.
//
//   U^T U = (H + damping * mean(diag H) * I)^-1
//   target = W, or W + W D H^-1 where the layer sees x instead of the float model's f
//
// Throws nibble::Error naming the node: out_of_range, H is not finite;
// failed_precondition, not positive definite at any damping that the plan allows. Safe
// from several threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "ptq/error.h"
#include "ptq/methods/method.h"

namespace nibble {

// What all layers that read the same inputs share, in solving order.
struct GptqFactor {
  std::vector<int64_t> order;  // order[i]: the column that comes i-th
  at::Tensor hessian;          // damped, f32 [in, in]
  at::Tensor u;                // U^T U = hessian^-1, upper, f32
  at::Tensor drift;            // D in f32, its columns in solving order; undefined: none
  double damping = 0;
  int64_t dead = 0;  // columns of zeros
};

// Made once for all layers that read problem.inputs.
std::shared_ptr<const GptqFactor> gptq_factor(const LayerProblem& problem);

// Rows solved together; rows do not depend on each other, and each product reads a matrix
// as wide as H once for so many of them.
inline int64_t rows_together(int64_t columns) { return columns > 2048 ? 256 : 128; }

// The weights to be rounded, f32 [out, in] in solving order; `original` gets them in the
// original order.
at::Tensor target_weights(const LayerProblem& problem, const GptqFactor& factor,
                          at::Tensor& original);

Error gptq_failure(const LayerProblem& problem, StatusCode code,
                   const std::string& message);

}  // namespace nibble
