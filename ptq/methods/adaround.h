// AdaRound: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization",
// arXiv 2004.10568. Each weight takes the value below or above it that its scale can
// hold; which of the two, descent on the layer's outputs decides.
//
//   W~ = low + (high - low) h(V)                                          eq. 22
//   h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)                  eq. 23
//   L = E |f(W x^ + ..) - f(W~ x^ + ..)|^2 + lambda sum 1 - |2 h(V) - 1|^beta   eq. 24,
//   25
//
// f is the ReLU where one alone reads the outputs, else the identity; x^ are the inputs
// in the net as it is quantized so far. zeta 1.1, gamma -0.1; Adam; no regularizer in the
// first fifth of the steps, then beta falls from 20 to 2. What is left between ends up on
// its nearer side: codes are whole. Scales are the rule's, and stay.
//
//   * Without a ReLU, E is exact, from second moments (hessian.h): no rows are kept and
//   no
//     step sees less than all of the data. With gptq.match_float (eq. 25) the float net's
//     outputs W x are the aim: the gradient has its term W D, D = E (x - x^) x^T.
//   * With a ReLU, E is over LayerProblem::rows, a random stretch of them a step.
//   * Each row of W has a problem of its own. Its loss is in units of E over its weights
//   of
//     what moving one by a code costs alone, so that lambda means the same in every
//     layer.
//   * A row that ends worse than it was rounded to nearest, on all of the data, stays so.
#pragma once

#include <ATen/core/Tensor.h>

namespace nibble {

// All elementwise, f32 or f64, of any shape.
at::Tensor rectified_sigmoid(const at::Tensor& v);        // h(V)
at::Tensor rectified_sigmoid_slope(const at::Tensor& v);  // dh / dV, 0 where h is clipped
at::Tensor rounding_regularizer(const at::Tensor& h, double beta);  // 1 - |2 h - 1|^beta
at::Tensor rounding_regularizer_slope(const at::Tensor& h, double beta);
// V of a given h in [0, 1].
at::Tensor inverse_rectified_sigmoid(const at::Tensor& h);

}  // namespace nibble
