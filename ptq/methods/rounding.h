// One weight to its code and back, with the arithmetic of kernels/scheme/coded_matrix.h.
//
//   integer      q = clamp(round(x / s) + z)    x = s * (q - z)
//   with minimum q = clamp(round((x - m) / s))  x = s * q + m
//   other codes  q = nearest element to x / s   x = s * value(q)
//
// s and offset are those that govern the element (expanded_scales, expanded_offsets).
// Methods that decide codes one by one (GPTQ) use it; whole matrices go through
// quantize().
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "kernels/scheme/coded_matrix.h"

namespace nibble {

// nearbyint, ties to even, without a call: beyond 2^22 floats of this sum are no longer
// apart by less than 1, and what is rounded there is clamped or an integer already.
inline float nearest_integer(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  return std::abs(x) < 4194304.0f ? (x + kShift) - kShift : std::nearbyint(x);
}

class Rounding {
 public:
  explicit Rounding(const QuantScheme& scheme)
      : scheme_(scheme),
        integer_(element_info(scheme.code).kind == ElementKind::integer),
        minimum_(scheme.offset == OffsetKind::minimum) {
    if (integer_) {
      lowest_ = static_cast<float>(code_lowest(scheme));
      highest_ = static_cast<float>(code_highest(scheme));
      return;
    }
    const int codes = 1 << element_info(scheme.code).bits;
    for (int code = 0; code < codes; ++code) {
      values_[code] = value_of(scheme.code, static_cast<uint8_t>(code));
    }
  }

  uint8_t code(float x, float scale, float offset) const {
    if (!integer_) return code_of(scheme_, (minimum_ ? x - offset : x) / scale);
    const float rounded = minimum_ ? nearest_integer((x - offset) / scale)
                                   : nearest_integer(x / scale) + offset;
    if (!(rounded > lowest_)) return static_cast<uint8_t>(static_cast<int>(lowest_));
    if (rounded > highest_) return static_cast<uint8_t>(static_cast<int>(highest_));
    return static_cast<uint8_t>(static_cast<int>(rounded));
  }

  // The number that the scale multiplies: a code less its zero point, an element's value.
  float level(uint8_t code, float offset) const {
    if (!integer_) return values_[code];
    const int q = lowest_ < 0 ? static_cast<int8_t>(code) : code;
    return minimum_ ? static_cast<float>(q) : static_cast<float>(q) - offset;
  }

  float value(uint8_t code, float scale, float offset) const {
    const float product = scale * level(code, offset);
    return minimum_ ? product + offset : product;
  }

 private:
  QuantScheme scheme_;
  bool integer_;
  bool minimum_;
  float lowest_ = 0, highest_ = 0;
  std::array<float, 256> values_{};
};

}  // namespace nibble
