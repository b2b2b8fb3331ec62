#include "kernels/scheme/element_codec.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/float_types.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {
namespace {

// Rounds |v| < 2^22 to an integer, half to even: beyond 2^23 a float has no fraction.
// Unlike nearbyintf it vectorises on every x86-64.
inline float round_half_even(float v) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (v + kMagic) - kMagic;
}

inline float clamp(float v, float lowest, float highest) {
  v = v < lowest ? lowest : v;
  return v > highest ? highest : v;
}

uint8_t ternary_from_float(float x) {
  return static_cast<uint8_t>(static_cast<int>(round_half_even(clamp(x, -1.0f, 1.0f))) +
                              1);
}

uint8_t binary_from_float(float x) { return x >= 0 ? 1 : 0; }

// The code of a number already divided by its scale; null for integers.
using FromFloat = uint8_t (*)(float);
FromFloat from_float(Element element) {
  switch (element) {
    case Element::e2m1:
      return e2m1_from_float;
    case Element::e4m3:
      return e4m3_from_float;
    case Element::e5m2:
      return e5m2_from_float;
    case Element::e8m0:
      return e8m0_from_float;
    case Element::nf4:
      return nf4_from_float;
    case Element::fp4:
      return fp4_from_float;
    case Element::dyn8:
      return dyn8_from_float;
    case Element::iq4nl:
      return iq4nl_from_float;
    case Element::ternary:
      return ternary_from_float;
    case Element::binary:
      return binary_from_float;
    default:
      return nullptr;
  }
}

float table_value(Element element, uint8_t code) {
  constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
  switch (element) {
    case Element::e2m1:
      return code < 16 ? float_from_e2m1(code) : kNone;
    case Element::e4m3:
      return float_from_e4m3(code);
    case Element::e5m2:
      return std::isfinite(float_from_e5m2(code)) ? float_from_e5m2(code) : kNone;
    case Element::e8m0:
      return float_from_e8m0(code);
    case Element::nf4:
      return code < 16 ? nf4_table()[code] : kNone;
    case Element::fp4:
      return code < 16 ? fp4_table()[code] : kNone;
    case Element::dyn8:
      return dyn8_table()[code];
    case Element::iq4nl:
      return code < 16 ? iq4nl_table()[code] : kNone;
    case Element::ternary:
      return code < 3 ? static_cast<float>(code) - 1.0f : kNone;
    case Element::binary:
      return code < 2 ? 2.0f * static_cast<float>(code) - 1.0f : kNone;
    default:
      break;
  }
  const ElementInfo& info = element_info(element);
  const float value = info.lowest < 0 ? static_cast<float>(static_cast<int8_t>(code))
                                      : static_cast<float>(code);
  return value >= info.lowest && value <= info.highest ? value : kNone;
}

constexpr size_t kElementCount = static_cast<size_t>(Element::binary) + 1;

// Code is int8_t or uint8_t. The loops have no branch and no call, so that they
// vectorise.
template <OffsetKind kOffset>
void quantize_integers(float lowest, float highest, const float* x, const float* scale,
                       const float* offset, uint8_t* codes, int64_t n) {
  for (int64_t c = 0; c < n; ++c) {
    if constexpr (kOffset == OffsetKind::zero_point) {
      // Clamped before rounding: the same result, since the bounds are integers.
      const float z = offset[c];
      const float v = clamp(x[c] / scale[c], lowest - z, highest - z);
      codes[c] = static_cast<uint8_t>(static_cast<int>(round_half_even(v) + z));
    } else {
      const float centred = kOffset == OffsetKind::minimum ? x[c] - offset[c] : x[c];
      const float v = clamp(centred / scale[c], lowest, highest);
      codes[c] = static_cast<uint8_t>(static_cast<int>(round_half_even(v)));
    }
  }
}

template <class Code, OffsetKind kOffset>
void dequantize_integers(const uint8_t* codes, const float* scale, const float* offset,
                         float* x, int64_t n) {
  for (int64_t c = 0; c < n; ++c) {
    const float q = static_cast<float>(static_cast<Code>(codes[c]));
    if constexpr (kOffset == OffsetKind::zero_point) {
      x[c] = scale[c] * (q - offset[c]);
    } else if constexpr (kOffset == OffsetKind::minimum) {
      x[c] = scale[c] * q + offset[c];
    } else {
      x[c] = scale[c] * q;
    }
  }
}

template <class Code>
void dequantize_integers(OffsetKind kind, const uint8_t* codes, const float* scale,
                         const float* offset, float* x, int64_t n) {
  switch (kind) {
    case OffsetKind::none:
      return dequantize_integers<Code, OffsetKind::none>(codes, scale, offset, x, n);
    case OffsetKind::zero_point:
      return dequantize_integers<Code, OffsetKind::zero_point>(codes, scale, offset, x,
                                                               n);
    case OffsetKind::minimum:
      return dequantize_integers<Code, OffsetKind::minimum>(codes, scale, offset, x, n);
  }
}

}  // namespace

const std::array<float, 256>& value_table(Element element) {
  static const auto tables = [] {
    std::array<std::array<float, 256>, kElementCount> all{};
    for (Element e : all_elements()) {
      if (element_info(e).bits > 8) continue;
      for (int code = 0; code < 256; ++code) {
        all[static_cast<size_t>(e)][static_cast<size_t>(code)] =
            table_value(e, static_cast<uint8_t>(code));
      }
    }
    return all;
  }();
  return tables[static_cast<size_t>(element)];
}

float value_of_bits(Element element, uint32_t bits) {
  switch (element) {
    case Element::f32: {
      float value;
      std::memcpy(&value, &bits, sizeof value);
      return value;
    }
    case Element::f16:
      return float_from_f16(static_cast<uint16_t>(bits));
    case Element::bf16:
      return float_from_bf16(static_cast<uint16_t>(bits));
    default:
      break;
  }
  const ElementInfo& info = element_info(element);
  if (info.kind == ElementKind::integer && info.lowest < 0) {  // sign-extend to the byte
    const uint32_t sign = 1u << (info.bits - 1);
    bits = (bits ^ sign) - sign;
  }
  return value_table(element)[bits & 0xff];
}

uint32_t bits_of_value(Element element, float value) {
  switch (element) {
    case Element::f32: {
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      return bits;
    }
    case Element::f16:
      return f16_from_float(value);
    case Element::bf16:
      return bf16_from_float(value);
    default:
      break;
  }
  if (const FromFloat encode = from_float(element)) return encode(value);
  const ElementInfo& info = element_info(element);
  const int code =
      static_cast<int>(round_half_even(clamp(value, info.lowest, info.highest)));
  return static_cast<uint32_t>(code) & ((1u << info.bits) - 1);
}

float smallest_positive(Element element) {
  switch (element) {
    case Element::f32:
    case Element::bf16:
      return 0x1p-100f;
    case Element::f16:
      return 0x1p-24f;
    default:
      break;
  }
  float smallest = std::numeric_limits<float>::max();
  for (const float value : value_table(element)) {
    if (value > 0 && value < smallest) smallest = value;
  }
  return smallest;
}

float round_to_element(Element element, float x) {
  return value_of_bits(element, bits_of_value(element, x));
}

float value_of(Element element, uint8_t code) { return value_table(element)[code]; }

uint8_t code_of(const QuantScheme& scheme, float x) {
  if (const FromFloat encode = from_float(scheme.code)) return encode(x);
  const float v = clamp(x, static_cast<float>(code_lowest(scheme)),
                        static_cast<float>(code_highest(scheme)));
  return static_cast<uint8_t>(static_cast<int>(round_half_even(v)));
}

void quantize_row(const QuantScheme& scheme, const float* x, const float* scale,
                  const float* offset, uint8_t* codes, int64_t n) {
  if (const FromFloat encode = from_float(scheme.code)) {
    for (int64_t c = 0; c < n; ++c) codes[c] = encode(x[c] / scale[c]);
    return;
  }
  const float lowest = static_cast<float>(code_lowest(scheme));
  const float highest = static_cast<float>(code_highest(scheme));
  switch (scheme.offset) {
    case OffsetKind::none:
      return quantize_integers<OffsetKind::none>(lowest, highest, x, scale, offset, codes,
                                                 n);
    case OffsetKind::zero_point:
      return quantize_integers<OffsetKind::zero_point>(lowest, highest, x, scale, offset,
                                                       codes, n);
    case OffsetKind::minimum:
      return quantize_integers<OffsetKind::minimum>(lowest, highest, x, scale, offset,
                                                    codes, n);
  }
}

void dequantize_row(const QuantScheme& scheme, const uint8_t* codes, const float* scale,
                    const float* offset, float* x, int64_t n) {
  const ElementInfo& info = element_info(scheme.code);
  if (info.kind != ElementKind::integer) {
    const std::array<float, 256>& values = value_table(scheme.code);
    for (int64_t c = 0; c < n; ++c) x[c] = scale[c] * values[codes[c]];
  } else if (info.lowest < 0) {
    dequantize_integers<int8_t>(scheme.offset, codes, scale, offset, x, n);
  } else {
    dequantize_integers<uint8_t>(scheme.offset, codes, scale, offset, x, n);
  }
}

}  // namespace nibble
