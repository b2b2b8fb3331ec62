// Attention of sequences to themselves with a gradient (ops/attention/attention.h: causal
// or not, windows, grouped query heads), for training and calibration.
//
//   q [.., T, heads * head_dim], k and v [.., T, kv_heads * head_dim] -> y as q
//
// float32 on the CPU; the same bits at any thread count, with gradients or without.
// Nothing of the size T * T is kept: scores are computed again in the backward pass, some
// rows at a time (arXiv 2205.14135). Safe to call from any thread.
#pragma once

#include <torch/types.h>

#include "kernels/ops/attention/attention.h"

namespace nibble {

torch::Tensor attention_op(const AttentionShape& shape, const torch::Tensor& q,
                           const torch::Tensor& k, const torch::Tensor& v);

}  // namespace nibble
