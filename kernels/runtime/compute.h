// What the linear layers of a model take as activations where it does not say so itself.
//
//   float  as they are
//   bf16   rounded to bf16, and so are plain weights (ops/linear/linear.h has the
//   formula);
//          float where the CPU or the scheme has no such product
//   int8   quantized per token to int8n/r@f32 where weights are integers; else float
//
// parse_compute: invalid_argument for another name. Allocates for errors only; safe from
// any thread.
#pragma once

#include <string>

#include "kernels/base/status.h"
#include "kernels/ops/linear/linear.h"

namespace nibble {

enum class Compute : uint8_t { float_activations, bf16_activations, dynamic_int8 };

inline constexpr const char* kComputeNames = "float|bf16|int8";
const char* compute_name(Compute compute);
Result<Compute> parse_compute(const std::string& name);  // "": float
LinearActivation linear_activation(Compute compute);

}  // namespace nibble
