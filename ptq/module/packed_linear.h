// A linear layer over a packed weight that stays packed: forward and backward each make
// its floats and drop them (QLoRA, Dettmers et al., arXiv 2305.14314, sec. 3: the base is
// stored in 4 bits and computed in floats). The weight has no gradient.
//
//   y = x W^T,  dx = dy W       x [.., in], y [.., out], W = dequantize(packed)
//
// bf16: operands of both products rounded to bf16. packed must outlive the graph.
#pragma once

#include <torch/types.h>

#include <memory>

#include "kernels/packing/packed_tensor.h"

namespace nibble {

torch::Tensor packed_linear(const torch::Tensor& x,
                            std::shared_ptr<const PackedTensor> packed, bool bf16);

// The floats of a packed weight.
torch::Tensor dequantized(const PackedTensor& packed);

}  // namespace nibble
