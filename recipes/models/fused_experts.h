// Checkpoints that keep the experts of a layer in one tensor, as transformers 5 does in
// memory, get the names of those that keep them apart:
//
//   <..>.experts.gate_up_proj [E, 2 I, D] -> <..>.experts.<e>.gate_proj.weight [I, D],
//                                            <..>.experts.<e>.up_proj.weight   [I, D]
//   <..>.experts.down_proj    [E, D, I]   -> <..>.experts.<e>.down_proj.weight [D, I]
//
// Views: no byte is copied. invalid_argument: such a tensor has another shape.
#pragma once

#include <map>
#include <string>

#include "kernels/base/tensor.h"

namespace nibble {

Status split_fused_experts(std::map<std::string, Tensor>& tensors);

}  // namespace nibble
