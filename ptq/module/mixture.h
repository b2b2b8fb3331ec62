// The routing of a moe node with LibTorch (kernels/ops/moe/moe.h has the formula).
//
// chosen and weights [tokens, top_k] for router logits [tokens, experts]: the experts of
// the largest logits, of equal ones the lower index first; weights carry gradients.
//
// Safe to call from any thread.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/program/program.h"

namespace nibble {

struct Routing {
  at::Tensor chosen;   // int64
  at::Tensor weights;  // f32
};
// The attributes experts_per_token and normalize of the node.
Routing route(const Node& moe, const at::Tensor& router_logits);

// The tokens that an expert gets, rising, and in which of their top_k places.
struct ExpertTokens {
  at::Tensor tokens, places;  // int64 [n]
};
ExpertTokens tokens_of(const at::Tensor& chosen, int64_t expert);

}  // namespace nibble
