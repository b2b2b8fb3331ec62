// What nodes read, rounded as it will be when the quantized model runs: for methods that
// are solved on what the layers before them give. Called from many threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "kernels/program/program.h"
#include "ptq/plan.h"

namespace nibble {

using InputRounding =
    std::function<at::Tensor(const Node& node, size_t input, const at::Tensor& x)>;

// Rounds where the plan quantizes the value or the layer's input; empty where it
// quantizes neither.
InputRounding input_rounding(const Plan& plan, const Program& program);

// The rounding for values on `device`: it reads memory of the CPU, so that what lies
// elsewhere goes there and back.
InputRounding rounding_on(at::Device device, InputRounding rounding);

}  // namespace nibble
