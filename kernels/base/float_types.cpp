#include "kernels/base/float_types.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace nibble {
namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr uint32_t kInfinity = 0x7f800000;

// Adding a power of two whose ulp is the smallest subnormal rounds a to that grid, half
// to even; the low bits of the sum are then the subnormal code.
uint32_t subnormal_code(uint32_t a, float magic) {
  return bits_of(from_bits(a) + magic) - bits_of(magic);
}

}  // namespace

uint16_t f16_from_float(float x) {
  const uint32_t u = bits_of(x);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000);
  uint32_t a = u & 0x7fffffff;
  if (a > kInfinity) {  // quiet NaN with the payload's upper bits, as F16C
    return static_cast<uint16_t>(sign | 0x7e00 | ((a >> 13) & 0x1ff));
  }
  if (a >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
  if (a < 0x38800000) {                       // below 2^-14; 0.5 has ulp 2^-24
    return static_cast<uint16_t>(sign | subnormal_code(a, 0.5f));
  }
  a -= 112u << 23;  // bias 127 to bias 15
  a += 0xfff + ((a >> 13) & 1);
  return static_cast<uint16_t>(sign | (a >> 13));
}

float float_from_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t a = bits & 0x7fff;
  if (a >= 0x7c00) return from_bits(sign | kInfinity | ((a & 0x3ff) << 13));
  if (a >= 0x0400) return from_bits(sign | ((a << 13) + (112u << 23)));
  const float magnitude = static_cast<float>(a) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

uint16_t bf16_from_float(float x) {
  uint32_t u = bits_of(x);
  if ((u & 0x7fffffff) > kInfinity) return static_cast<uint16_t>((u >> 16) | 0x40);
  u += 0x7fff + ((u >> 16) & 1);
  return static_cast<uint16_t>(u >> 16);
}

float float_from_bf16(uint16_t bits) {
  return from_bits(static_cast<uint32_t>(bits) << 16);
}

uint8_t e4m3_from_float(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t sign = (u >> 24) & 0x80;
  uint32_t a = u & 0x7fffffff;
  if (a > kInfinity) return static_cast<uint8_t>(sign | 0x7f);
  if (a > 0x43e80000)
    return static_cast<uint8_t>(sign | 0x7e);  // above 464, the tie with 480
  if (a < 0x3c800000) {                        // below 2^-6; 2^14 has ulp 2^-9
    return static_cast<uint8_t>(sign | subnormal_code(a, 16384.0f));
  }
  a -= 120u << 23;  // bias 127 to bias 7
  a += 0x7ffff + ((a >> 20) & 1);
  return static_cast<uint8_t>(sign | (a >> 20));
}

float float_from_e4m3(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24;
  const uint32_t a = bits & 0x7f;
  if (a == 0x7f) return from_bits(sign | 0x7fc00000);
  if (a >= 8) return from_bits(sign | ((a << 20) + (120u << 23)));
  const float magnitude = static_cast<float>(a) * 0x1p-9f;
  return sign != 0 ? -magnitude : magnitude;
}

uint8_t e5m2_from_float(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t sign = (u >> 24) & 0x80;
  uint32_t a = u & 0x7fffffff;
  if (a > kInfinity) return static_cast<uint8_t>(sign | 0x7f);
  if (a >= 0x47700000)
    return static_cast<uint8_t>(sign | 0x7b);  // 61440, the tie with 65536
  if (a < 0x38800000) {                        // below 2^-14; 2^7 has ulp 2^-16
    return static_cast<uint8_t>(sign | subnormal_code(a, 128.0f));
  }
  a -= 112u << 23;  // bias 127 to bias 15
  a += 0xfffff + ((a >> 21) & 1);
  return static_cast<uint8_t>(sign | (a >> 21));
}

float float_from_e5m2(uint8_t bits) {  // the upper byte of an IEEE half
  return float_from_f16(static_cast<uint16_t>(bits << 8));
}

uint8_t e2m1_from_float(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t a = u & 0x7fffffff;
  if (a > kInfinity) return 0;  // no NaN in this type
  const float magnitude = from_bits(a);
  // Midpoints of 0 .5 1 1.5 2 3 4 6; a tie goes to the even code, hence > and >= in turn.
  const int code = (magnitude > 0.25f) + (magnitude >= 0.75f) + (magnitude > 1.25f) +
                   (magnitude >= 1.75f) + (magnitude > 2.5f) + (magnitude >= 3.5f) +
                   (magnitude > 5.0f);
  return static_cast<uint8_t>(((u >> 28) & 8) | static_cast<uint32_t>(code));
}

float float_from_e2m1(uint8_t bits) {
  static constexpr float kValues[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  const float magnitude = kValues[bits & 7];
  return (bits & 8) != 0 ? -magnitude : magnitude;
}

uint8_t e8m0_from_float(float x) {
  if (std::isnan(x)) return 0xff;
  if (!(x > 0)) return 0;  // the type has no zero and no sign: its smallest value
  const uint32_t u = bits_of(x);
  if (u >= kInfinity) return 254;
  const uint32_t exponent = u >> 23;
  // Subnormals: 2^-127 (code 0) and 2^-126 (code 1) part at 2^-126.5 = 5931641.6 *
  // 2^-149.
  if (exponent == 0) return u > 5931641 ? 1 : 0;
  // 0x3504f3 is the fraction of the float just below sqrt(2).
  const uint32_t up = (u & 0x7fffff) > 0x3504f3 ? 1 : 0;
  return static_cast<uint8_t>(std::min(exponent + up, 254u));
}

float float_from_e8m0(uint8_t bits) {
  if (bits == 0xff) return from_bits(0x7fc00000);
  if (bits == 0) return 0x1p-127f;
  return from_bits(static_cast<uint32_t>(bits) << 23);
}

const std::array<float, 16>& nf4_table() {
  static constexpr std::array<float, 16> kTable = {
      -1.0f,
      -0.6961928009986877f,
      -0.5250730514526367f,
      -0.39491748809814453f,
      -0.28444138169288635f,
      -0.18477343022823334f,
      -0.09105003625154495f,
      0.0f,
      0.07958029955625534f,
      0.16093020141124725f,
      0.24611230194568634f,
      0.33791524171829224f,
      0.44070982933044434f,
      0.5626170039176941f,
      0.7229568362236023f,
      1.0f,
  };
  return kTable;
}

const std::array<float, 16>& fp4_table() {
  static const std::array<float, 16> table = [] {
    // Twelfths of the code's 3 bits, in the order of bitsandbytes.
    const double twelfths[8] = {0, 0.0625, 8, 12, 4, 6, 2, 3};
    std::array<float, 16> values{};
    for (int i = 0; i < 8; ++i) {
      values[i] = static_cast<float>(twelfths[i] / 12);
      values[i + 8] = i == 0 ? 0.0f : -values[i];  // both zeros are +0
    }
    return values;
  }();
  return table;
}

// For i = 0..6: the middles of the 2^i equal parts of [0.1, 1], times 10^(i - 6), with
// both signs; then 0 and 1. 2 * 127 + 2 = 256 values, ascending. Each is rounded once;
// bitsandbytes sums in float, in an order that depends on the CPU, and comes within 3 ulp
// of it.
const std::array<float, 256>& dyn8_table() {
  static const std::array<float, 256> table = [] {
    constexpr double kPowers[7] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1};
    std::array<float, 256> values{};
    size_t count = 0;
    for (int i = 0; i < 7; ++i) {
      const int parts = 1 << i;
      for (int k = 0; k < parts; ++k) {
        const double middle = 0.1 + 0.9 * (k + 0.5) / parts;
        values[count++] = static_cast<float>(middle * kPowers[i]);
        values[count++] = static_cast<float>(-middle * kPowers[i]);
      }
    }
    values[count++] = 0.0f;
    values[count++] = 1.0f;
    std::sort(values.begin(), values.end());
    return values;
  }();
  return table;
}

const std::array<float, 16>& iq4nl_table() {
  static constexpr std::array<float, 16> kTable = {
      -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return kTable;
}

uint8_t nf4_from_float(float x) {
  static const std::array<float, 15> midpoints = [] {
    std::array<float, 15> values{};
    for (size_t i = 0; i < 15; ++i)
      values[i] = (nf4_table()[i] + nf4_table()[i + 1]) / 2.0f;
    return values;
  }();
  int code = std::isnan(x) ? 7 : 0;  // 7 stands for 0
  for (const float midpoint : midpoints) code += x > midpoint;
  return static_cast<uint8_t>(code);
}

uint8_t fp4_from_float(float x) {
  // Codes in the order of their values; of the two zeros code 0 comes first.
  static constexpr uint8_t kOrder[16] = {11, 10, 13, 12, 15, 14, 9, 0,
                                         8,  1,  6,  7,  4,  5,  2, 3};
  static const std::array<float, 15> midpoints = [] {
    std::array<float, 15> values{};
    for (size_t i = 0; i < 15; ++i) {
      values[i] = (fp4_table()[kOrder[i]] + fp4_table()[kOrder[i + 1]]) / 2.0f;
    }
    return values;
  }();
  int place = std::isnan(x) ? 7 : 0;
  for (const float midpoint : midpoints) place += x > midpoint;
  return kOrder[place];
}

uint8_t iq4nl_from_float(float x) {
  if (std::isnan(x)) x = 0.0f;
  int code = 0;
  for (size_t i = 0; i < 15; ++i)  // sums of two entries: exact in float
    code += 2 * x >= iq4nl_table()[i] + iq4nl_table()[i + 1];
  return static_cast<uint8_t>(code);
}

uint8_t dyn8_from_float(float x) {
  static const std::array<float, 255> midpoints = [] {
    std::array<float, 255> values{};
    for (size_t i = 0; i < 255; ++i)
      values[i] = (dyn8_table()[i] + dyn8_table()[i + 1]) / 2.0f;
    return values;
  }();
  if (std::isnan(x)) x = 0.0f;
  const auto place =
      std::lower_bound(midpoints.begin(), midpoints.end(), x);  // first >= x
  return static_cast<uint8_t>(place - midpoints.begin());
}

}  // namespace nibble
