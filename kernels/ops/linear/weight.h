// The weight of a linear layer as an artifact holds it: plain or packed.
//
// invalid_argument / data_loss: the tensor is no matrix, or what was packed is malformed.
// Copying shares bytes. Safe to call from any thread.
#pragma once

#include <cstdint>

#include "kernels/base/matrix_view.h"
#include "kernels/base/status.h"
#include "kernels/packing/packed_tensor.h"

namespace nibble {

// Exactly one of the two is filled.
struct LinearWeight {
  QuantScheme scheme;
  int64_t rows = 0;
  int64_t cols = 0;
  Tensor plain;
  PackedTensor packed;
  bool is_plain() const { return scheme.is_float(); }
  int64_t bytes() const;  // codes, scales and offsets as the artifact stores them
};
Result<LinearWeight> linear_weight(const Tensor& tensor);  // f64 becomes f32
Result<LinearWeight> linear_weight(const PackedTensor& packed);
// Rows [first, first + x.rows) as f32.
Status weight_rows(const LinearWeight& weight, int64_t first, MatrixView<float> x);

}  // namespace nibble
