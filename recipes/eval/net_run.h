// Any net over values of its own: inputs by name from tensors, outputs by name, one batch
// after the other with what an output carries to an input of the next (a recurrent
// state).
//
// Without a carry a tensor has its input's own shape and the net runs once; the outputs
// likewise. With one, tensors of the inputs that are not carried have the steps in front,
// [steps, ..]; a carried input begins as its tensor (its own shape) or as zeros; every
// output is [steps, ..].
//
// invalid_argument: a tensor is missing, of another shape, or floats were required; a
// carry names no input or output, or two that differ in shape. Names the tensor.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/runtime/executor.h"
#include "recipes/data/signals.h"

namespace nibble {

Result<std::map<std::string, Tensor>> run_net(Executor& net,
                                              const std::map<std::string, Tensor>& inputs,
                                              const std::vector<Carry>& carries);

}  // namespace nibble
