// What quantization took from a weight, given back by two thin matrices beside it.
//
//   min over B [out, rank], A [rank, in] of  E |(T - Q - B A) x|^2      over the inputs x
//   = |(T - Q - B A) R^(1/2)|_F^2,  R = E[x x^T]
//
// QERA (Zhang et al., arXiv 2410.06040, theorem 1) solves it by the SVD of
// E R^(1/2) = U S V^T, E = T - Q: B = U_r S_r, A = V_r^T R^(-1/2). Here B = U_r, the
// first eigenvectors of E R E^T, and A = U_r^T E: the same product, without an inverse,
// so that inputs that never vary need no damping. T is the weight; where the layer sees a
// quantized prefix and the plan matches the float model, GPTQ's target (gptq_factor.h).
//
// Without inputs R = I: the SVD of E alone (LoRC of ZeroQuant-V2, arXiv 2303.08302; LQER,
// arXiv 2402.02446, scales its columns instead).
//
// Both are stored in bf16, which costs a 2^-9th of what they give back.
#pragma once

#include "kernels/base/matrix_view.h"
#include "kernels/program/edits/low_rank.h"
#include "ptq/methods/method.h"

namespace nibble {

// problem.inputs null: of the weight alone. rank at most that of the weight. Throws
// nibble::Error naming the node: out_of_range where a figure is not finite.
LowRankFactors low_rank_factors(const LayerProblem& problem, const CodedMatrix& coded,
                                int64_t rank);

// Rows [first, first + weight.rows) of a weight [out, in] += theirs of B A, in float32.
void add_factors(const LowRankFactors& factors, MatrixView<float> weight,
                 int64_t first = 0);

}  // namespace nibble
