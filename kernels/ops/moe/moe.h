// Which experts a token goes to, and how much each counts (the router of Qwen3-MoE).
//
// p = softmax(logits) over all experts; chosen[t, 0 ..] are the top_k experts of the
// largest logits, the largest first and of equal ones the lower index first.
//   weights[t, j] = p[chosen[t, j]], with normalize divided by their sum over j
//
//   logits           [tokens, experts], finite
//   chosen, weights  [tokens, top_k]
//
// One row for every machine. 1 <= top_k <= experts. Safe to call from any thread.
#pragma once

#include <cstdint>

#include "kernels/base/matrix_view.h"

namespace nibble {

void route_tokens(MatrixView<const float> logits, bool normalize,
                  MatrixView<int32_t> chosen, MatrixView<float> weights);

}  // namespace nibble
