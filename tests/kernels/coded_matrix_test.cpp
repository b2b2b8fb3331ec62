#include "kernels/scheme/coded_matrix.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/parallel.h"
#include "kernels/scheme/element_codec.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::HasSubstr;
using ::testing::Pointwise;

struct Matrix {
  int64_t rows, cols;
  std::vector<float> x;
  MatrixView<const float> view() const { return {x.data(), rows, cols}; }
};

// The sum of 12 uniform numbers: nearly normal, and the same with every standard library.
Matrix normal_matrix(int64_t rows, int64_t cols, uint32_t seed, float deviation = 1) {
  std::mt19937 bits(seed);
  Matrix m{rows, cols, std::vector<float>(static_cast<size_t>(rows * cols))};
  for (float& v : m.x) {
    double sum = -6;
    for (int k = 0; k < 12; ++k) sum += bits() / 4294967296.0;
    v = static_cast<float>(sum) * deviation;
  }
  return m;
}

QuantScheme scheme(const std::string& text) { return *parse_scheme(text); }

ScaleRule mse() {
  ScaleRule rule;
  rule.kind = ScaleRule::Kind::mse;
  return rule;
}

CodedMatrix coded(const Matrix& m, const std::string& text, const ScaleRule& rule = {}) {
  Result<CodedMatrix> q = choose_scales(m.view(), scheme(text), rule);
  EXPECT_TRUE(q.ok()) << q.status().message();
  if (!q.ok()) return {};
  const Status status = quantize(m.view(), *q);
  EXPECT_TRUE(status.ok()) << status.message();
  return *q;
}

std::vector<float> decoded(const CodedMatrix& q) {
  std::vector<float> x(static_cast<size_t>(q.rows * q.cols));
  const Status status = dequantize(q, {x.data(), q.rows, q.cols});
  EXPECT_TRUE(status.ok()) << status.message();
  return x;
}

double squared_error(const Matrix& m, const CodedMatrix& q) {
  const std::vector<float> y = decoded(q);
  double sum = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    sum += (static_cast<double>(m.x[i]) - y[i]) * (static_cast<double>(m.x[i]) - y[i]);
  }
  return sum;
}

double snr_db(const Matrix& m, const CodedMatrix& q) {
  double power = 0;
  for (const float v : m.x) power += static_cast<double>(v) * v;
  return 10 * std::log10(power / squared_error(m, q));
}

std::vector<int> signed_codes(const CodedMatrix& q) {
  std::vector<int> codes;
  for (const uint8_t code : q.codes) codes.push_back(static_cast<int8_t>(code));
  return codes;
}

// --- the formulas, one by one

TEST(Quantize, RoundsHalfToEvenAfterADivision) {
  const Matrix m{1, 6, {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 7.0f}};
  const CodedMatrix q = coded(m, "int4/r@f32");
  EXPECT_EQ(q.scales[0].values[0], 1.0f);
  EXPECT_THAT(signed_codes(q), ElementsAre(0, 2, 2, 0, -2, 7));
}

TEST(Quantize, FourBitsKeepMinusEight) {
  const Matrix m{1, 4, {-8.0f, 7.0f, 3.0f, -4.0f}};
  const CodedMatrix full = coded(m, "int4/r@f32");
  EXPECT_EQ(full.scales[0].values[0], 1.0f);  // max(7 / 7, 8 / 8)
  EXPECT_THAT(signed_codes(full), ElementsAre(-8, 7, 3, -4));
  const CodedMatrix narrow = coded(m, "int4n/r@f32");
  EXPECT_EQ(narrow.scales[0].values[0], 8.0f / 7);
  // The float 8/7 lies above 8/7, so -4 / s is just short of the tie at -3.5.
  EXPECT_THAT(signed_codes(narrow), ElementsAre(-7, 6, 3, -3));
}

TEST(Quantize, TheFullRangeGivesMinusEightToTheLongerSide) {
  const auto both = [](const Matrix& m, const char* text, ScaleRule rule) {
    rule.full_range = true;
    CodedMatrix q = choose_scales(m.view(), scheme(text), rule).value();
    EXPECT_TRUE(quantize(m.view(), q).ok());
    return q;
  };
  const Matrix up{1, 4, {8.0f, -7.0f, 3.0f, -4.0f}},
      down{1, 4, {-8.0f, 7.0f, 3.0f, -4.0f}};
  const CodedMatrix turned = both(up, "int4/r@f32", {});
  EXPECT_EQ(turned.scales[0].values[0], -1.0f);
  EXPECT_THAT(signed_codes(turned), ElementsAre(-8, 7, -3, 4));
  EXPECT_EQ(decoded(turned), up.x);
  const CodedMatrix plain = both(down, "int4/r@f32", {});
  EXPECT_EQ(plain.scales[0].values[0], 1.0f);
  EXPECT_EQ(decoded(plain), down.x);
  // Two bits: 2 and -1 under -1; without, 2 / 1 would be the scale.
  EXPECT_EQ(decoded(both({1, 3, {2.0f, -1.0f, 1.0f}}, "int2/r@f16", {})),
            (std::vector<float>{2, -1, 1}));

  // Never worse than one sign, under either rule's own measure.
  for (const char* text : {"int4/g16@f16", "int3/g16@bf16", "int2/g16@f32"}) {
    const Matrix m = normal_matrix(6, 64, 5);
    double with = 0, without = 0;
    ScaleRule rule{.kind = ScaleRule::Kind::mse};
    const std::vector<float> turned_values = decoded(both(m, text, rule));
    CodedMatrix q = choose_scales(m.view(), scheme(text), rule).value();
    ASSERT_TRUE(quantize(m.view(), q).ok());
    const std::vector<float> plain_values = decoded(q);
    for (size_t i = 0; i < m.x.size(); ++i) {
      with += std::pow(turned_values[i] - m.x[i], 2);
      without += std::pow(plain_values[i] - m.x[i], 2);
    }
    EXPECT_LT(with, without) << text;
  }
  // Schemes without a longer side, with offsets, of eight bits or of other elements.
  for (const char* text :
       {"int4n/r@f32", "uint4/r@f32+z/r@uint4", "int8/r@f32", "nf4/r@f32",
        "int4/g16@e4m3/t@f32", "ternary/r@f32", "int4/r@e8m0"}) {
    const Matrix m = normal_matrix(4, 32, 6);
    EXPECT_FALSE(has_signed_scales(scheme(text))) << text;
    CodedMatrix q = choose_scales(m.view(), scheme(text), {}).value();
    ASSERT_TRUE(quantize(m.view(), q).ok());
    EXPECT_EQ(both(m, text, {}), q) << text;
  }
}

TEST(Quantize, ZeroPointPutsZeroOnACode) {
  const Matrix m{1, 4, {-1.0f, 0.0f, 2.0f, 0.4f}};
  const CodedMatrix q = coded(m, "uint4/r@f32+z/r@uint4");
  EXPECT_FLOAT_EQ(q.scales[0].values[0], 0.2f);  // (2 - -1) / 15
  EXPECT_EQ(q.offsets[0].values[0], 5.0f);       // round(1 / 0.2)
  EXPECT_THAT(q.codes, ElementsAre(0, 5, 15, 7));
  EXPECT_EQ(decoded(q)[1], 0.0f);
  // A range that does not hold zero is widened to it.
  const CodedMatrix positive = coded({1, 2, {3.0f, 6.0f}}, "uint4/r@f32+z/r@uint4");
  EXPECT_FLOAT_EQ(positive.scales[0].values[0], 0.4f);
  EXPECT_EQ(positive.offsets[0].values[0], 0.0f);
  const CodedMatrix with_sign = coded(m, "int4/r@f32+z/r@int4");
  EXPECT_EQ(with_sign.offsets[0].values[0], -3.0f);  // round(-8 + 5)
  EXPECT_THAT(signed_codes(with_sign), ElementsAre(-8, -3, 7, -1));
}

TEST(Quantize, MinimumNeedsNoZero) {
  const CodedMatrix q =
      coded({1, 4, {10.0f, 11.0f, 12.0f, 13.0f}}, "uint2/r@f32+m/r@f32");
  EXPECT_EQ(q.scales[0].values[0], 1.0f);
  EXPECT_EQ(q.offsets[0].values[0], 10.0f);
  EXPECT_THAT(q.codes, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(decoded(q), ElementsAre(10.0f, 11.0f, 12.0f, 13.0f));
  const CodedMatrix with_sign = coded({1, 2, {10.0f, 13.0f}}, "int2/r@f32+m/r@f32");
  EXPECT_EQ(with_sign.offsets[0].values[0], 12.0f);  // 10 - 1 * -2
  EXPECT_THAT(signed_codes(with_sign), ElementsAre(-2, 1));
}

TEST(Quantize, TwoLevelMinimaOfGgmlAreNegativeProducts) {
  const Matrix m = normal_matrix(2, 512, 3);
  const CodedMatrix q = coded(m, "uint4/g32@uint6/g256@f16+m/g32@uint6/g256@f16");
  for (const float v : q.offsets[0].values) {
    EXPECT_GE(v, 0.0f);
    EXPECT_LE(v, 63.0f);
    EXPECT_EQ(v, std::floor(v));
  }
  for (const float v : q.offsets[1].values) EXPECT_LT(v, 0.0f);
  EXPECT_EQ(*std::max_element(q.scales[0].values.begin(), q.scales[0].values.end()),
            63.0f);
  EXPECT_EQ(expanded_offsets(q)[0], q.offsets[0].values[0] * q.offsets[1].values[0]);
}

TEST(Quantize, UnsignedActivationsClampAtZero) {
  const CodedMatrix q = coded({1, 3, {-1.0f, 255.0f, 3.4f}}, "uint8/t@f32");
  EXPECT_EQ(q.scales[0].values[0], 1.0f);
  EXPECT_THAT(q.codes, ElementsAre(0, 255, 3));
}

TEST(Quantize, TernaryAndBinary) {
  const CodedMatrix ternary = coded({1, 4, {-2.0f, 0.9f, 1.1f, 2.0f}}, "ternary/r@f32");
  EXPECT_THAT(ternary.codes, ElementsAre(0, 1, 2, 2));
  EXPECT_THAT(decoded(ternary), ElementsAre(-2.0f, 0.0f, 2.0f, 2.0f));
  const CodedMatrix binary = coded({1, 3, {-2.0f, 0.0f, 1.0f}}, "binary/r@f32");
  EXPECT_THAT(binary.codes, ElementsAre(0, 1, 1));
  EXPECT_THAT(decoded(binary), ElementsAre(-2.0f, 2.0f, 2.0f));
}

// --- formats' worked examples

TEST(Quantize, Nf4Example) {
  const CodedMatrix q =
      coded({1, 6, {0.5f, -2.0f, 1.0f, 0.0f, 2.0f, -0.25f}}, "nf4/f64@f32");
  EXPECT_EQ(q.scales[0].values[0], 2.0f);
  EXPECT_THAT(q.codes, ElementsAre(10, 0, 12, 7, 15, 6));
  EXPECT_THAT(decoded(q), Pointwise(FloatEq(), {2 * 0.24611230194568634f, -2.0f,
                                                2 * 0.44070982933044434f, 0.0f, 2.0f,
                                                2 * -0.09105003625154495f}));
}

TEST(Quantize, Nvfp4Example) {
  Matrix m{2,
           16,
           {0.1f, -0.2f, 0.3f, 0.4f, -0.5f, 0.6f, 0.7f, -0.8f, 0.9f, 1.0f, -1.1f, 1.2f,
            0.0f, -0.05f, 0.02f, 1.5f}};
  m.x.resize(32, 3.0f);  // the second row makes the tensor's largest magnitude 3
  const CodedMatrix q = coded(m, "e2m1/g16@e4m3/t@f32");
  EXPECT_FLOAT_EQ(q.scales[1].values[0], 1.0f / 896);  // 3 / (6 * 448)
  EXPECT_EQ(bits_of_value(Element::e4m3, q.scales[0].values[0]), 0x76u);
  EXPECT_EQ(q.scales[0].values[1], 448.0f);
  const std::vector<uint8_t> row(q.codes.begin(), q.codes.begin() + 16);
  EXPECT_THAT(row, ElementsAre(1, 10, 2, 3, 12, 4, 5, 13, 6, 6, 14, 6, 0, 8, 0, 7));
  const std::vector<float> x = decoded(q);
  EXPECT_THAT(std::vector<float>(x.begin(), x.begin() + 16),
              Pointwise(FloatEq(), {.125f, -.25f, .25f, .375f, -.5f, .5f, .75f, -.75f,
                                    1.f, 1.f, -1.f, 1.f, 0.f, -0.f, 0.f, 1.5f}));
}

TEST(Quantize, MxScalesFollowTheFloorRule) {
  // amax -> exponent byte of e2m1: floor(log2 amax) - 2 + 127.
  const struct {
    float amax;
    uint32_t byte;
  } rows[] = {{1.0f, 125}, {1.74f, 125}, {1.75f, 125}, {2.0f, 126},   {4.0f, 127},
              {6.0f, 127}, {7.99f, 127}, {8.0f, 128},  {0x1p-126f, 0}};
  for (const auto& row : rows) {
    const CodedMatrix q = coded({1, 2, {row.amax, -row.amax / 2}}, "e2m1/g32@e8m0");
    EXPECT_EQ(bits_of_value(Element::e8m0, q.scales[0].values[0]), row.byte) << row.amax;
  }
  EXPECT_EQ(coded({1, 1, {448.0f}}, "e4m3/g32@e8m0").scales[0].values[0], 1.0f);
  EXPECT_EQ(coded({1, 1, {64.0f}}, "int8/g32@e8m0").scales[0].values[0], 1.0f);
  // A table ends at 1, so its scale must not be below the largest magnitude.
  EXPECT_EQ(coded({1, 1, {3.0f}}, "nf4/g32@e8m0").scales[0].values[0], 4.0f);
  EXPECT_EQ(coded({1, 1, {4.0f}}, "nf4/g32@e8m0").scales[0].values[0], 4.0f);
}

TEST(Quantize, DoubleQuantizationShiftsByTheMean) {
  const Matrix m = normal_matrix(16, 64, 5);
  const CodedMatrix plain = coded(m, "nf4/f64@f32");
  const CodedMatrix nested = coded(m, "nf4/f64@dyn8+o/f512@f32");
  double sum = 0;
  for (const float v : plain.scales[0].values) sum += v;
  EXPECT_FLOAT_EQ(nested.scales[0].shift, static_cast<float>(sum / 16));
  ASSERT_EQ(nested.scales[1].values.size(), 2u);
  float largest = 0;  // of the first eight blocks
  for (int i = 0; i < 8; ++i) {
    largest =
        std::max(largest, std::fabs(plain.scales[0].values[i] - nested.scales[0].shift));
  }
  EXPECT_EQ(nested.scales[1].values[0], largest);
  const std::vector<float> s = expanded_scales(nested);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(s[64 * i], nested.scales[0].values[i] * nested.scales[1].values[i / 8] +
                             nested.scales[0].shift);
    EXPECT_NEAR(s[64 * i], plain.scales[0].values[i], 0.02 * largest);
  }
}

// --- properties of every scheme

const char* const kSchemes[] = {
    "int2/g32@f16",
    "int3/g32@f16",
    "int4/g32@f16",
    "int4n/g32@bf16",
    "int5/r@f32",
    "int6/c@f32",
    "int7/b4x16@f16",
    "int8/t@f32",
    "int8n/r@f32",
    "uint2/b32x1@f16+m/b32x1@f16",
    "uint3/g16@f16+z/g16@uint3",
    "uint4/g32@f16+z/g32@uint4",
    "uint4/g32@uint6/g256@f16+m/g32@uint6/g256@f16",
    "uint4/g32@f32+m/g32@int8+o/t@f32",
    "uint5/f48@f16+m/f48@f16",
    "uint6/r@f32+z/r@uint8",
    "uint7/g32@f16+m/g32@f16",
    "uint8/r@f32+z/r@uint8",
    "int8/r@f32+z/r@int8",
    "int4/g32@e8m0",
    "int4/g32@uint4/g256@f16",
    "int4/g16@e4m3/r@f32",
    "int4/g16@e4m3/g64@uint8/t@f32",
    "e2m1/g32@e8m0",
    "e2m1/g16@e4m3/t@f32",
    "e4m3/b16x16@f32",
    "e4m3/g32@e8m0",
    "e5m2/t@f32",
    "nf4/f64@f32",
    "nf4/f64@dyn8+o/f16384@f32",
    "nf4/g32@e8m0",
    "fp4/f64@f32",
    "dyn8/f256@f32",
    "ternary/g32@f16",
    "binary/g32@f16",
};

class EveryScheme : public ::testing::TestWithParam<const char*> {};

TEST_P(EveryScheme, EveryCodeIsTheNearestThatItsScaleAllows) {
  const Matrix m = normal_matrix(9, 100, 11, 0.05f);
  const CodedMatrix q = coded(m, GetParam());
  const QuantScheme& s = q.scheme;
  const std::vector<float> scales = expanded_scales(q), offsets = expanded_offsets(q);
  const bool integer = element_info(s.code).kind == ElementKind::integer;
  for (size_t i = 0; i < m.x.size(); ++i) {
    const auto real = [&](double value) {
      return s.offset == OffsetKind::zero_point ? scales[i] * (value - offsets[i])
                                                : scales[i] * value + offsets[i];
    };
    double best = std::numeric_limits<double>::infinity();
    for (int code = 0; code < 256; ++code) {
      const float value = value_of(s.code, static_cast<uint8_t>(code));
      if (std::isnan(value) || (integer && value < static_cast<float>(code_lowest(s))))
        continue;
      best = std::min(best, std::fabs(real(value) - m.x[i]));
    }
    const double mine = std::fabs(real(value_of(s.code, q.codes[i])) - m.x[i]);
    ASSERT_LE(mine, best + 1e-6 * std::fabs(m.x[i]) + 1e-9)
        << GetParam() << " element " << i;
  }
}

TEST_P(EveryScheme, DequantizeIsTheFormulaInFloat) {
  const Matrix m = normal_matrix(5, 43, 12);
  const CodedMatrix q = coded(m, GetParam());
  const std::vector<float> x = decoded(q), scales = expanded_scales(q),
                           offsets = expanded_offsets(q);
  for (size_t i = 0; i < x.size(); ++i) {
    const float value = value_of(q.scheme.code, q.codes[i]);
    const float expected =
        q.scheme.offset == OffsetKind::zero_point ? scales[i] * (value - offsets[i])
        : q.scheme.offset == OffsetKind::minimum  ? scales[i] * value + offsets[i]
                                                  : scales[i] * value;
    ASSERT_EQ(x[i], expected);
  }
}

TEST_P(EveryScheme, LevelsAreExactInTheirElementsAndScalesPositive) {
  for (const ScaleRule& rule : {ScaleRule{}, mse()}) {
    const Matrix m = normal_matrix(6, 70, 13, 1e-3f);
    const CodedMatrix q = coded(m, GetParam(), rule);
    for (size_t k = 0; k < q.scales.size(); ++k) {
      for (const float v : q.scales[k].values) {
        ASSERT_EQ(round_to_element(q.scheme.scales[k].element, v), v);
      }
    }
    for (size_t k = 0; k < q.offsets.size(); ++k) {
      for (const float v : q.offsets[k].values) {
        ASSERT_EQ(round_to_element(q.scheme.offsets[k].element, v), v);
      }
    }
    for (const float s : expanded_scales(q)) ASSERT_GT(s, 0.0f);
  }
}

TEST_P(EveryScheme, ZerosTinyAndConstantBlocksHaveAPositiveScale) {
  for (const float fill : {0.0f, 1e-30f, -1e-30f, 1e-42f, -0.5f, 0.5f}) {
    Matrix m{3, 70, std::vector<float>(210, fill)};
    for (size_t i = 0; i < 40; ++i) m.x[i] = 0.0f;
    const CodedMatrix q = coded(m, GetParam());
    for (const float s : expanded_scales(q))
      ASSERT_TRUE(s > 0 && std::isfinite(s)) << fill;
    for (const float v : decoded(q)) ASSERT_TRUE(std::isfinite(v));
  }
}

TEST_P(EveryScheme, MseIsNeverWorseThanAbsmax) {
  const Matrix m = normal_matrix(8, 128, 14);
  // With one level absmax is among the candidates; outer levels are the same for both
  // rules.
  EXPECT_LE(squared_error(m, coded(m, GetParam(), mse())),
            squared_error(m, coded(m, GetParam())) * (1 + 1e-9));
}

TEST_P(EveryScheme, TheSameAtAnyThreadCount) {
  const int before = thread_count();
  const Matrix m = normal_matrix(70, 530, 15);
  std::vector<CodedMatrix> results;
  for (int threads : {1, 2, 3}) {
    set_thread_count(threads);
    results.push_back(coded(m, GetParam(), mse()));
  }
  set_thread_count(before);
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST_P(EveryScheme, AStridedMatrixGivesTheSame) {
  const Matrix m = normal_matrix(6, 50, 16);
  std::vector<float> wide(6 * 60, std::numeric_limits<float>::quiet_NaN());
  for (int r = 0; r < 6; ++r)
    std::copy_n(m.x.begin() + 50 * r, 50, wide.begin() + 60 * r);
  const MatrixView<const float> view(wide.data(), 6, 50, 60);
  Result<CodedMatrix> q = choose_scales(view, scheme(GetParam()), {});
  ASSERT_TRUE(q.ok()) << q.status().message();
  ASSERT_TRUE(quantize(view, *q).ok());
  EXPECT_EQ(*q, coded(m, GetParam()));
}

std::string test_name(const ::testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}
INSTANTIATE_TEST_SUITE_P(All, EveryScheme, ::testing::ValuesIn(kSchemes), test_name);

// --- error of each element: a bound on both sides, for normal data under groups of 64

struct Snr {
  const char* scheme;
  double lowest, highest;  // dB
};

class SnrTest : public ::testing::TestWithParam<Snr> {};

TEST_P(SnrTest, LiesBetweenItsBounds) {
  const Matrix m = normal_matrix(64, 1024, 17, 0.02f);
  const double snr = snr_db(m, coded(m, GetParam().scheme));
  EXPECT_GE(snr, GetParam().lowest) << GetParam().scheme;
  EXPECT_LE(snr, GetParam().highest) << GetParam().scheme;
}

// A uniform b-bit quantizer over +-k deviations has 6.02 b + 4.77 - 20 log10(k) dB of
// SNR; the largest of 64 normal numbers is about 2.4 deviations, so 6.02 b - 2.9, less
// what int2's one unused half costs. The other rows surround the figure for uniform
// spacing at their peak.
const Snr kSnr[] = {
    {"int2/g64@f32", 2.5, 6.0},
    {"int3/g64@f32", 11.5, 14.5},
    {"int4/g64@f32", 19.0, 21.0},
    {"int5/g64@f32", 25.5, 27.5},
    {"int6/g64@f32", 31.7, 33.7},
    {"int7/g64@f32", 37.9, 39.9},
    {"int8/g64@f32", 44.0, 46.0},
    {"uint2/g64@f32+m/g64@f32", 6.5, 9.5},
    {"uint3/g64@f32+m/g64@f32", 14.0, 16.5},
    {"uint4/g64@f32+z/g64@uint4", 20.0, 22.0},
    {"uint5/g64@f32+z/g64@uint5", 26.3, 28.3},
    {"uint6/g64@f32+z/g64@uint6", 32.6, 34.6},
    {"uint7/g64@f32+z/g64@uint7", 38.7, 40.7},
    {"uint8/g64@f32+z/g64@uint8", 44.8, 46.8},
    {"e2m1/g64@f32", 18.0, 20.5},
    {"e4m3/g64@f32", 30.5, 32.5},
    {"e5m2/g64@f32", 24.5, 26.5},
    {"nf4/g64@f32", 19.5, 21.8},
    {"fp4/g64@f32", 17.0, 19.5},
    {"dyn8/g64@f32", 38.0, 41.0},
    {"ternary/g64@f32", 1.0, 5.0},
    {"binary/g64@f32", -9.0, -4.0},
    {"e2m1/g16@e4m3/t@f32", 19.5, 21.5},
    {"e2m1/g32@e8m0", 17.8, 19.8},
};
INSTANTIATE_TEST_SUITE_P(All, SnrTest, ::testing::ValuesIn(kSnr), [](const auto& info) {
  std::string name = info.param.scheme;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
});

// --- rules

TEST(ScaleRule, ImportanceMovesTheScale) {
  Matrix m = normal_matrix(1, 64, 18);
  m.x[7] = 6.0f;  // an outlier in one column
  std::vector<float> outlier_matters(64, 1.0f), outlier_ignored(64, 1.0f);
  outlier_matters[7] = 1e4f;
  outlier_ignored[7] = 0.0f;
  const QuantScheme s = scheme("int4/r@f32");
  const float wide =
      choose_scales(m.view(), s, mse(), outlier_matters)->scales[0].values[0];
  const float close =
      choose_scales(m.view(), s, mse(), outlier_ignored)->scales[0].values[0];
  EXPECT_LT(close, 0.8f * wide);
}

TEST(ScaleRule, ANumberOfPlacesInOneTensorBlockIsFound) {
  // t, r and one group over the whole row are the same block of a one-row matrix.
  const Matrix m = normal_matrix(1, 64, 19);
  const CodedMatrix t = coded(m, "int4/t@f32", mse()), r = coded(m, "int4/r@f32", mse()),
                    g = coded(m, "int4/g64@f32", mse()),
                    b = coded(m, "int4/b1x64@f32", mse());
  EXPECT_EQ(t.codes, r.codes);
  EXPECT_EQ(t.codes, g.codes);
  EXPECT_EQ(t.codes, b.codes);
}

TEST(ScaleRule, AScaleThatDoesNotFitItsElementIsAnError) {
  const Matrix m{2, 2, {1.0f, 2.0f, 3.0f, 1e6f}};
  Status status = choose_scales(m.view(), scheme("int4/r@f16"), {}).status();
  EXPECT_EQ(status.code(), StatusCode::out_of_range);
  EXPECT_EQ(status.message(),
            "[scale_rule] row 1, column 0: a value of 142857 must fit f16 (at "
            "most 65504); use bf16 or f32, or add an outer level");
  EXPECT_TRUE(choose_scales(m.view(), scheme("int4/r@bf16"), {}).ok());
  status = choose_scales(m.view(), scheme("int4/r@e4m3"), {}).status();
  EXPECT_THAT(status.message(), HasSubstr("must fit e4m3 (at most 448)"));
}

TEST(ScaleRule, WhatIsNotFiniteIsNamed) {
  Matrix m = normal_matrix(4, 40, 20);
  m.x[2 * 40 + 33] = std::numeric_limits<float>::quiet_NaN();
  for (const char* text : {"int4/g32@f16", "int4/t@f32", "int4/c@f32", "nf4/f64@f32"}) {
    const Status status = choose_scales(m.view(), scheme(text), {}).status();
    EXPECT_EQ(status.code(), StatusCode::out_of_range) << text;
    EXPECT_EQ(status.message(),
              cat("[scale_rule] ", text,
                  ": row 2, column 33: a finite number is needed; found nan"));
  }
}

TEST(ScaleRule, RequestsWithoutMeaningAreRefused) {
  const Matrix m = normal_matrix(2, 4, 21);
  const std::vector<float> three(3, 1.0f);
  EXPECT_THAT(choose_scales(m.view(), scheme("f32"), {}).status().message(),
              HasSubstr("a scheme with a scale is needed"));
  EXPECT_THAT(
      choose_scales(m.view(), scheme("int4/r@f32"), mse(), three).status().message(),
      HasSubstr("importance must have one weight a column, 4; found 3"));
  EXPECT_THAT(
      choose_scales({m.x.data(), 0, 4}, scheme("int4/r@f32"), {}).status().message(),
      HasSubstr("a matrix with elements is needed; found [0, 4]"));
  ScaleRule rule = mse();
  rule.mse_steps = 0;
  EXPECT_THAT(choose_scales(m.view(), scheme("int4/r@f32"), rule).status().message(),
              HasSubstr("steps >= 1"));
}

// --- refusals of quantize and dequantize

TEST(Quantize, BadScalesAndNumbersAreNamed) {
  Matrix m = normal_matrix(3, 8, 22);
  CodedMatrix q = coded(m, "int4/r@f32");
  q.scales[0].values[1] = 0.0f;
  EXPECT_EQ(
      quantize(m.view(), q).message(),
      "[coded_matrix] int4/r@f32: row 1, column 0: a scale must be finite and not 0; "
      "found 0");
  CodedMatrix narrow = coded(m, "int4n/r@f32");
  narrow.scales[0].values[2] = -1.0f;
  EXPECT_EQ(quantize(m.view(), narrow).message(),
            "[coded_matrix] int4n/r@f32: row 2, column 0: a scale must be finite and "
            "positive; found -1");
  q.scales[0].values[1] = 1.0f;
  m.x[2 * 8 + 5] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(
      quantize(m.view(), q).message(),
      "[coded_matrix] int4/r@f32: row 2, column 5: a finite number is needed; found inf");
}

TEST(Quantize, ShapesMustAgree) {
  const Matrix m = normal_matrix(3, 8, 23);
  CodedMatrix q = coded(m, "int4/g4@f32");
  EXPECT_THAT(quantize({m.x.data(), 4, 6}, q).message(),
              HasSubstr("the matrix must be [3, 8] as the levels are; found [4, 6]"));
  q.scales[0].values.pop_back();
  EXPECT_THAT(
      quantize(m.view(), q).message(),
      HasSubstr(
          "scale level 0 of a [3, 8] matrix is [3, 2]; found [3, 2] with 5 values"));
  q = coded(m, "int4/g4@f32");
  q.codes.pop_back();
  std::vector<float> x(24);
  EXPECT_THAT(dequantize(q, {x.data(), 3, 8}).message(),
              HasSubstr("needs 24 codes; found 23"));
}

TEST(CodeOf, RoundsAndClamps) {
  EXPECT_EQ(static_cast<int8_t>(code_of(scheme("int4/r@f32"), -100.0f)), -8);
  EXPECT_EQ(static_cast<int8_t>(code_of(scheme("int4n/r@f32"), -100.0f)), -7);
  EXPECT_EQ(code_of(scheme("uint3/r@f32"), 2.5f), 2);
  EXPECT_EQ(code_of(scheme("nf4/r@f32"), 0.9f), 15);
  EXPECT_EQ(value_of(Element::int4, 0xf8), -8.0f);
  EXPECT_EQ(value_of(Element::e2m1, 13), -3.0f);
  EXPECT_TRUE(std::isnan(value_of(Element::ternary, 3)));
  EXPECT_EQ(round_to_element(Element::f16, 1.0001f), 1.0f);
  EXPECT_EQ(round_to_element(Element::uint6, 62.5f), 62.0f);
  EXPECT_EQ(round_to_element(Element::e8m0, 3.0f), 4.0f);
}

}  // namespace
}  // namespace nibble
