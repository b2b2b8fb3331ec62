// Looks up rows of a table, plain or packed.
//
// y[t, :] = weight[ids[t], :], dequantized
//
//   ids     [tokens], each in [0, weight.rows)
//   weight  [V, D]: f32, f16, bf16, or packed under any scheme
//   y       [tokens, D]
//
// out_of_range: an id outside the table (names the position and the id).
// invalid_argument: shapes disagree. One row for every machine: a lookup moves bytes.
// Allocates nothing.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/base/matrix_view.h"
#include "kernels/base/status.h"
#include "kernels/ops/linear/linear.h"

namespace nibble {

Status embedding(std::span<const int32_t> ids, const LinearWeight& weight,
                 MatrixView<float> y);
// The row that serves it, for the ledger: "embedding_any__reference".
inline constexpr const char* kEmbeddingKernel = "embedding_any__reference";

}  // namespace nibble
