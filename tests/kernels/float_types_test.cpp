#include "kernels/base/float_types.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace nibble {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::nanf("");

// The value of a minifloat's code from its definition, in double.
double minifloat_value(int code, int exponent_bits, int mantissa_bits, int bias) {
  const int sign = code >> (exponent_bits + mantissa_bits) & 1;
  const int exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1);
  const double fraction = std::ldexp(code & ((1 << mantissa_bits) - 1), -mantissa_bits);
  const double magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bias)
                                         : std::ldexp(1 + fraction, exponent - bias);
  return sign != 0 ? -magnitude : magnitude;
}

struct Minifloat {
  const char* name;
  int exponent_bits, mantissa_bits, bias;
  int highest;  // the code of the largest finite value
  uint8_t (*from_float)(float);
  float (*to_float)(uint8_t);
};
const Minifloat kMinifloats[] = {
    {"e4m3", 4, 3, 7, 0x7e, e4m3_from_float, float_from_e4m3},
    {"e5m2", 5, 2, 15, 0x7b, e5m2_from_float, float_from_e5m2},
    {"e2m1", 2, 1, 1, 7, e2m1_from_float, float_from_e2m1},
};

class MinifloatTest : public ::testing::TestWithParam<Minifloat> {
 protected:
  const Minifloat& type() const { return GetParam(); }
  int sign() const { return 1 << (type().exponent_bits + type().mantissa_bits); }
  double value(int code) const {
    return minifloat_value(code, type().exponent_bits, type().mantissa_bits, type().bias);
  }
};

TEST_P(MinifloatTest, EveryCodeDecodesToItsDefinition) {
  for (int code = 0; code <= type().highest; ++code) {
    EXPECT_EQ(type().to_float(static_cast<uint8_t>(code)), value(code)) << code;
    EXPECT_EQ(type().to_float(static_cast<uint8_t>(code | sign())), -value(code)) << code;
  }
}

TEST_P(MinifloatTest, EveryCodeEncodesToItself) {
  for (int code = 0; code <= type().highest; ++code) {
    EXPECT_EQ(type().from_float(static_cast<float>(value(code))), code);
    EXPECT_EQ(type().from_float(-static_cast<float>(value(code))), code | sign());
  }
}

// Codes of one sign are consecutive, so an even code is one with an even mantissa.
TEST_P(MinifloatTest, EveryMidpointGoesToTheEvenCodeAndItsNeighboursToTheNearest) {
  for (int code = 0; code < type().highest; ++code) {
    const float middle = static_cast<float>((value(code) + value(code + 1)) / 2);
    const int even = code % 2 == 0 ? code : code + 1;
    for (int s : {0, sign()}) {
      const float side = s != 0 ? -1.0f : 1.0f;
      EXPECT_EQ(type().from_float(side * middle), s | even) << middle;
      EXPECT_EQ(type().from_float(side * std::nextafter(middle, 0.0f)), s | code)
          << middle;
      EXPECT_EQ(type().from_float(side * std::nextafter(middle, kInf)), s | (code + 1))
          << middle;
    }
  }
}

TEST_P(MinifloatTest, SaturatesAndKeepsTheSignOfZero) {
  const float huge = std::numeric_limits<float>::max();
  EXPECT_EQ(type().from_float(huge), type().highest);
  EXPECT_EQ(type().from_float(kInf), type().highest);
  EXPECT_EQ(type().from_float(-kInf), type().highest | sign());
  EXPECT_EQ(type().from_float(0.0f), 0);
  EXPECT_EQ(type().from_float(-0.0f), sign());
}

INSTANTIATE_TEST_SUITE_P(All, MinifloatTest, ::testing::ValuesIn(kMinifloats),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(E4m3, NotANumberStaysOne) {
  EXPECT_EQ(e4m3_from_float(kNan) & 0x7f, 0x7f);
  EXPECT_TRUE(std::isnan(float_from_e4m3(0x7f)));
  EXPECT_TRUE(std::isnan(float_from_e4m3(0xff)));
}

TEST(E5m2, NotANumberAndInfinityDecode) {
  EXPECT_EQ(e5m2_from_float(kNan) & 0x7f, 0x7f);
  EXPECT_EQ(float_from_e5m2(0x7c), kInf);
  EXPECT_EQ(float_from_e5m2(0xfc), -kInf);
  for (int code : {0x7d, 0x7e, 0x7f, 0xff}) {
    EXPECT_TRUE(std::isnan(float_from_e5m2(static_cast<uint8_t>(code))));
  }
}

TEST(E2m1, NotANumberBecomesZero) { EXPECT_EQ(e2m1_from_float(kNan), 0); }

// Rows: value, E4M3 and E5M2, both saturating.
TEST(Fp8, WorkedValues) {
  const struct {
    float x;
    int e4m3, e5m2;
  } rows[] = {
      {0.1f, 0x1d, 0x2e},     {1.0625f, 0x38, 0x3c},  {1.1875f, 0x3a, 0x3d},
      {464.0f, 0x7e, 0x5f},   {464.1f, 0x7e, 0x5f},   {479.0f, 0x7e, 0x5f},
      {0x1p-10f, 0x00, 0x14}, {61439.0f, 0x7e, 0x7b}, {61440.0f, 0x7e, 0x7b},
      {kInf, 0x7e, 0x7b},
  };
  for (const auto& row : rows) {
    EXPECT_EQ(e4m3_from_float(row.x), row.e4m3) << row.x;
    EXPECT_EQ(e5m2_from_float(row.x), row.e5m2) << row.x;
  }
}

TEST(E8m0, EveryCodeIsAPowerOfTwo) {
  for (int code = 0; code < 255; ++code) {
    const float x = float_from_e8m0(static_cast<uint8_t>(code));
    EXPECT_EQ(static_cast<double>(x), std::ldexp(1.0, code - 127));
    EXPECT_EQ(e8m0_from_float(x), code);
  }
  EXPECT_TRUE(std::isnan(float_from_e8m0(255)));
  EXPECT_EQ(e8m0_from_float(kNan), 255);
}

TEST(E8m0, NearestInTheLogarithm) {
  for (int code = 0; code < 254; ++code) {
    // sqrt(2) * 2^k parts k from k + 1; no float equals it.
    const double middle = std::sqrt(2.0) * std::ldexp(1.0, code - 127);
    const float below = static_cast<float>(middle);
    const float a =
        static_cast<double>(below) > middle ? std::nextafter(below, 0.0f) : below;
    EXPECT_EQ(e8m0_from_float(a), code);
    EXPECT_EQ(e8m0_from_float(std::nextafter(a, kInf)), code + 1);
  }
  EXPECT_EQ(e8m0_from_float(0.0f), 0);
  EXPECT_EQ(e8m0_from_float(-3.0f), 0);
  EXPECT_EQ(e8m0_from_float(kInf), 254);
}

TEST(F16, EveryCodeDecodesAndEncodes) {
  for (uint32_t code = 0; code < 0x10000; ++code) {
    const uint16_t bits = static_cast<uint16_t>(code);
    const float x = float_from_f16(bits);
    const int exponent = bits >> 10 & 31;
    if (exponent == 31) {
      if ((bits & 0x3ff) == 0) {
        EXPECT_EQ(x, (bits & 0x8000) != 0 ? -kInf : kInf);
        EXPECT_EQ(f16_from_float(x), bits);
      } else {
        EXPECT_TRUE(std::isnan(x));
        EXPECT_EQ(f16_from_float(x), bits | 0x200);  // quiet
      }
      continue;
    }
    ASSERT_EQ(static_cast<double>(x), minifloat_value(bits, 5, 10, 15)) << bits;
    ASSERT_EQ(f16_from_float(x), bits);
  }
}

TEST(F16, EveryMidpointGoesToTheEvenCode) {
  for (uint32_t code = 0; code < 0x7c00;
       ++code) {  // the last one is 65520, which overflows
    const double low = minifloat_value(static_cast<int>(code), 5, 10, 15);
    const double high =
        code == 0x7bff ? 65536.0 : minifloat_value(static_cast<int>(code) + 1, 5, 10, 15);
    const float middle = static_cast<float>((low + high) / 2);
    ASSERT_EQ(f16_from_float(middle), code % 2 == 0 ? code : code + 1) << middle;
    ASSERT_EQ(f16_from_float(std::nextafter(middle, 0.0f)), code);
    ASSERT_EQ(f16_from_float(std::nextafter(middle, kInf)), code + 1);
    ASSERT_EQ(f16_from_float(-middle), (code % 2 == 0 ? code : code + 1) | 0x8000);
  }
}

TEST(Bf16, EveryCodeDecodesAndMidpointsGoToTheEvenCode) {
  for (uint32_t code = 0; code < 0x7f80; ++code) {
    const uint16_t bits = static_cast<uint16_t>(code);
    ASSERT_EQ(std::bit_cast<uint32_t>(float_from_bf16(bits)), code << 16);
    ASSERT_EQ(bf16_from_float(float_from_bf16(bits)), bits);
    const float middle = std::bit_cast<float>(code << 16 | 0x8000u);
    ASSERT_EQ(bf16_from_float(middle), code % 2 == 0 ? code : code + 1);
    ASSERT_EQ(bf16_from_float(std::bit_cast<float>(code << 16 | 0x7fffu)), code);
    ASSERT_EQ(bf16_from_float(std::bit_cast<float>(code << 16 | 0x8001u)), code + 1);
  }
  EXPECT_TRUE(std::isnan(float_from_bf16(bf16_from_float(kNan))));
  EXPECT_TRUE(
      std::isnan(float_from_bf16(bf16_from_float(std::bit_cast<float>(0x7f800001u)))));
}

TEST(Nf4, NearestEntryAndTheLowerOneAtMidpoints) {
  const auto& table = nf4_table();
  for (int code = 0; code < 16; ++code) EXPECT_EQ(nf4_from_float(table[code]), code);
  for (int code = 0; code < 15; ++code) {
    const float middle = (table[code] + table[code + 1]) / 2;
    EXPECT_EQ(nf4_from_float(middle), code);
    EXPECT_EQ(nf4_from_float(std::nextafter(middle, kInf)), code + 1);
  }
  EXPECT_EQ(nf4_from_float(-kInf), 0);
  EXPECT_EQ(nf4_from_float(kInf), 15);
  EXPECT_EQ(table[7], 0.0f);
}

TEST(Fp4, NearestEntryAndItsTwoZeros) {
  const auto& table = fp4_table();
  for (int code = 0; code < 16; ++code) {
    if (code == 8) continue;  // the other zero
    EXPECT_EQ(fp4_from_float(table[code]), code);
  }
  EXPECT_EQ(fp4_from_float(0.0f), 0);
  EXPECT_EQ(fp4_from_float(-0.0f), 0);
  EXPECT_EQ(fp4_from_float(-0.0026f), 0);
  EXPECT_EQ(fp4_from_float(0.0026f), 8);
  EXPECT_EQ(fp4_from_float(std::numeric_limits<float>::denorm_min()), 8);
  EXPECT_EQ(fp4_from_float(0.00261f), 1);
  EXPECT_EQ(fp4_from_float(-0.00261f), 9);
  EXPECT_FLOAT_EQ(table[1], 0.0625f / 12);
  EXPECT_FLOAT_EQ(table[10], -8.0f / 12);
}

TEST(Iq4nl, NearestEntryAndTheUpperOneAtMidpoints) {
  const auto& table = iq4nl_table();
  for (int code = 0; code < 16; ++code) EXPECT_EQ(iq4nl_from_float(table[code]), code);
  for (int code = 0; code < 15; ++code) {
    const float middle = (table[code] + table[code + 1]) / 2;
    EXPECT_EQ(iq4nl_from_float(middle), code + 1);
    EXPECT_EQ(iq4nl_from_float(std::nextafter(middle, -kInf)), code);
  }
  EXPECT_EQ(iq4nl_from_float(-kInf), 0);
  EXPECT_EQ(iq4nl_from_float(kInf), 15);
  EXPECT_EQ(iq4nl_from_float(kNan), 8);  // as 0, to which 1 is nearest
}

TEST(Dyn8, IsASortedMapWithTwoMoreThanItsPairs) {
  const auto& table = dyn8_table();
  int negative = 0;
  for (int code = 0; code < 256; ++code) {
    negative += table[code] < 0;
    EXPECT_EQ(dyn8_from_float(table[code]), code);
    if (code == 255) break;
    ASSERT_LT(table[code], table[code + 1]);
    const float middle = (table[code] + table[code + 1]) / 2;
    EXPECT_EQ(dyn8_from_float(middle), code);
    EXPECT_EQ(dyn8_from_float(std::nextafter(middle, kInf)), code + 1);
  }
  EXPECT_EQ(negative, 127);
  EXPECT_EQ(table[127], 0.0f);
  EXPECT_EQ(table[255], 1.0f);
  EXPECT_FLOAT_EQ(table[128], 0.55e-6f);  // the middle of [0.1, 1] times 10^-6
}

}  // namespace
}  // namespace nibble
