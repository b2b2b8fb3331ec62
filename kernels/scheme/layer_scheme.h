// What is decided for one layer or one value: weight and activation schemes, and the
// extras that are not meaning (permutation, low-rank parts) and stay beside the tensor.
#pragma once

#include <optional>
#include <string>

#include "kernels/scheme/quant_scheme.h"

namespace nibble {

// An activation's scheme. dynamic: scales come from the data at run time. Static: `scale`
// (and zero_point) were calibrated, one per tensor.
struct ActivationScheme {
  QuantScheme scheme;
  bool dynamic = false;
  float scale = 0;     // static only: real units per code, finite and positive
  int zero_point = 0;  // static only
  bool operator==(const ActivationScheme&) const = default;
};

// Names of tensors, not tensors; empty = none.
struct LayerExtras {
  // i32 [cols]: column c of the codes is column permutation[c] of the weight (act-order)
  std::string permutation;
  std::string low_rank_a, low_rank_b;
  bool operator==(const LayerExtras&) const = default;
};

struct LayerScheme {
  QuantScheme weight;
  std::optional<ActivationScheme> input;  // a further requantization of the input value
  LayerExtras extras;
  bool operator==(const LayerScheme&) const = default;
};

// Static integer activations (ActivationScheme, not dynamic), the arithmetic that ships:
//   q = clamp(round_half_even(x / scale) + zero_point),   x = scale * (q - zero_point)
inline constexpr const char* kSignedActivation = "int8/t@f32";
inline constexpr const char* kUnsignedActivation = "uint8/t@f32";

}  // namespace nibble
