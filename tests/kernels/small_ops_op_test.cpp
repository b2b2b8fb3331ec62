#include <gmock/gmock.h>

#include "kernels/ops/elementwise/elementwise.h"
#include "kernels/ops/embedding/embedding.h"
#include "kernels/ops/moe/moe.h"
#include "kernels/ops/quantize_rows/quantize_rows.h"
#include "kernels/ops/rms_norm/rms_norm.h"
#include "kernels/ops/rope/rope.h"
#include "kernels/ops/silu_mul/silu_mul.h"
#include "op_test.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;

const int64_t kLengths[] = {1, 7, 8, 15, 16, 17, 31, 64, 172, 257};

template <class Kernel>
std::vector<const Kernel*> usable(const std::vector<Kernel>& kernels) {
  std::vector<const Kernel*> rows;
  for (const Kernel& kernel : kernels) {
    if (this_cpu_has(kernel.flags)) rows.push_back(&kernel);
  }
  return rows;
}

class SmallOps : public OpTest {};

TEST_F(SmallOps, RmsNormRowsGiveWhatTheDefinitionGives) {
  for (const RmsNormKernel* kernel : usable(rms_norm_kernels())) {
    for (int64_t d : kLengths) {
      SCOPED_TRACE(cat(kernel->name, ", ", d, " columns"));
      Spaced x(random_floats(3 * d, 1), 3, d);
      for (int64_t i = 0; i < d; ++i) x.view()(1, i) *= 1e-4f;  // where epsilon matters
      for (int64_t i = 0; i < d; ++i) x.view()(2, i) = 0;
      const std::vector<float> weight = random_floats(d, 2);
      Spaced y(3, d), expected(3, d);
      kernel->run(x.view(), weight.data(), 1e-5f, y.view());
      rms_norm_reference(x.view(), weight.data(), 1e-5f, expected.view());
      for (int64_t t = 0; t < 3; ++t) {
        for (int64_t i = 0; i < d; ++i) {
          const double e = expected.view()(t, i);
          ASSERT_LE(std::fabs(y.view()(t, i) - e),
                    (static_cast<double>(d) / 2 + 8) * 0x1p-24 * std::fabs(e));
        }
      }
      EXPECT_TRUE(y.gaps_untouched());
      kernel->run(x.view(), weight.data(), 1e-5f, x.view());  // in place
      EXPECT_EQ(std::memcmp(x.data.data(), y.data.data(), static_cast<size_t>(d) * 4), 0);
    }
  }
}

TEST_F(SmallOps, RmsNormByHand) {
  const float x[2] = {3, 4}, weight[2] = {1, 2};
  float y[2];
  rms_norm_reference({x, 1, 2}, weight, 0, {y, 1, 2});
  EXPECT_FLOAT_EQ(y[0], 3 / std::sqrt(12.5f));
  EXPECT_FLOAT_EQ(y[1], 8 / std::sqrt(12.5f));
}

TEST_F(SmallOps, SiluMulRowsGiveWhatTheDefinitionGives) {
  std::vector<float> gate = random_floats(257, 3);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] *= i % 5 == 0 ? 30.0f : 3.0f;
  const float special[] = {0,   -0.0f, 87,  88,  89,   1e4f,  1e30f,
                           -86, -87,   -88, -89, -104, -1e4f, -1e30f};
  std::copy(std::begin(special), std::end(special), gate.begin() + 100);
  const std::vector<float> up = random_floats(257, 4);
  std::vector<float> expected(257);
  silu_mul_reference(gate.data(), up.data(), 257, expected.data());
  for (const SiluMulKernel* kernel : usable(silu_mul_kernels())) {
    for (int64_t n : kLengths) {
      SCOPED_TRACE(cat(kernel->name, ", ", n, " values"));
      std::vector<float> y(static_cast<size_t>(n) + 1, kPoison);
      kernel->run(gate.data(), up.data(), n, y.data());
      for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
        const double e = expected[i];
        ASSERT_LE(std::fabs(y[i] - e),
                  8 * 0x1p-24 * std::fabs(e) + 0x1p-120 * std::fabs(up[i]))
            << "gate " << gate[i] << ", up " << up[i] << ": " << y[i] << ", expected "
            << e;
      }
      EXPECT_TRUE(std::isnan(y.back()));
    }
    const float nan = kPoison, one = 1;
    float y = 0;
    kernel->run(&nan, &one, 1, &y);
    EXPECT_TRUE(std::isnan(y)) << kernel->name << " hides a NaN";
  }
}

TEST_F(SmallOps, QuantizeRowsGivesTheDefinitionsCodes) {
  for (const QuantizeRowsKernel* kernel : usable(quantize_rows_kernels())) {
    for (int64_t k : kLengths) {
      SCOPED_TRACE(cat(kernel->name, ", ", k, " columns"));
      Spaced x(random_floats(4 * k, 5), 4, k);
      // Halves, which round to even; a row of zeros; numbers whose quotient is not
      // normal.
      for (int64_t i = 0; i < k; ++i) {
        x.view()(1, i) = i == 0 ? 127.0f : static_cast<float>(i % 250) - 125.5f;
        x.view()(2, i) = i % 2 ? 0.0f : -0.0f;
        x.view()(3, i) *= 1e-38f;
      }
      const int64_t stride = k + 3;
      std::vector<int8_t> codes(static_cast<size_t>(4 * stride), 99), wanted = codes;
      float scales[4], wanted_scales[4];
      kernel->run(x.view(), MatrixView<int8_t>(codes.data(), 4, k, stride), scales);
      quantize_rows_reference(x.view(), MatrixView<int8_t>(wanted.data(), 4, k, stride),
                              wanted_scales);
      EXPECT_EQ(codes, wanted);
      EXPECT_EQ(std::memcmp(scales, wanted_scales, sizeof scales), 0);
    }
  }
}

TEST_F(SmallOps, QuantizeRowsByHand) {
  const float x[5] = {2.54f, -1.27f, 0.01f, -2.54f, 0.03f};
  int8_t codes[5];
  float scale;
  quantize_rows_reference({x, 1, 5}, {codes, 1, 5}, &scale);
  EXPECT_FLOAT_EQ(scale, 0.02f);
  EXPECT_EQ(codes[0], 127);
  EXPECT_EQ(codes[3], -127);
  EXPECT_NEAR(codes[1], -63.5, 0.5);
}

TEST_F(SmallOps, TablesFollowTheForcedLevel) {
  for (const std::string& level : cpu_levels()) {
    ASSERT_TRUE(force_cpu(level).ok());
    EXPECT_EQ(select_rms_norm().name, "rms_norm_f32__" + isa_under(level));
    EXPECT_EQ(select_silu_mul().name, "silu_mul_f32__" + isa_under(level));
    EXPECT_EQ(select_quantize_rows().name, "quantize_rows_s8__" + isa_under(level));
    EXPECT_EQ(select_rope().name, "rope_f32__" + isa_under(level));
  }
}

TEST_F(SmallOps, RopeTurnsPairsByTheirAngle) {
  for (bool interleaved : {false, true}) {
    const int64_t dim = 8, heads = 2;
    RopeTable table(dim, 10000);
    table.reserve(3);
    table.reserve(12);  // growing keeps what is there
    ASSERT_EQ(table.positions(), 12);
    const std::vector<float> values = random_floats(3 * heads * dim, 6);
    Spaced x(values, 3, heads * dim);
    apply_rope(x.view(), table, 9, interleaved);
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < dim / 2; ++i) {
          const int64_t a = h * dim + (interleaved ? 2 * i : i);
          const int64_t b = h * dim + (interleaved ? 2 * i + 1 : i + dim / 2);
          const double angle =
              static_cast<double>(9 + t) * std::pow(10000.0, -2.0 * i / dim);
          const double xa = values[static_cast<size_t>(t * heads * dim + a)];
          const double xb = values[static_cast<size_t>(t * heads * dim + b)];
          EXPECT_NEAR(x.view()(t, a), xa * std::cos(angle) - xb * std::sin(angle), 1e-6);
          EXPECT_NEAR(x.view()(t, b), xa * std::sin(angle) + xb * std::cos(angle), 1e-6);
        }
      }
    }
    EXPECT_TRUE(x.gaps_untouched());
  }
}

TEST_F(SmallOps, RopeRowsGiveTheDefinitionsBits) {
  constexpr int64_t kHeads = 3;
  for (const RopeKernel* kernel : usable(rope_kernels())) {
    for (int64_t half : {1, 3, 4, 5, 8, 9, 15, 16, 17, 24, 32, 64}) {
      for (const bool interleaved : {false, true}) {
        SCOPED_TRACE(cat(kernel->name, ", ", half, " pairs, interleaved ", interleaved));
        const int64_t size = kHeads * 2 * half;
        std::vector<float> x = random_floats(size, 9);
        const float special[] = {0, -0.0f, 1e-42f, -1e-42f, 1e37f, -1e37f};
        for (size_t i = 0; i < std::size(special) && i < x.size(); ++i) {
          x[(i * 7) % x.size()] = special[i];
        }
        x.push_back(kPoison);  // which lies behind the heads
        std::vector<float> expected = x;
        const std::vector<float> cosines = random_floats(half, 10),
                                 sines = random_floats(half, 11);
        kernel->run(x.data(), kHeads, half, cosines.data(), sines.data(), interleaved);
        rope_reference(expected.data(), kHeads, half, cosines.data(), sines.data(),
                       interleaved);
        EXPECT_TRUE(same_bytes(x, expected));
      }
    }
  }
}

TEST_F(SmallOps, RopeTablesGrowIntoTheirRoom) {
  RopeTable table(8, 10000), whole(8, 10000);
  table.reserve(3, 40);
  const float* const first = table.cosines(0);
  for (int64_t p = 4; p <= 40; ++p) table.reserve(p, 40);
  EXPECT_EQ(table.cosines(0), first);  // has not moved
  whole.reserve(40);
  EXPECT_EQ(std::memcmp(table.cosines(0), whole.cosines(0), 40 * 4 * sizeof(float)), 0);
  EXPECT_EQ(std::memcmp(table.sines(0), whole.sines(0), 40 * 4 * sizeof(float)), 0);
}

// Figures by hand: head_dim 16 and theta 10000 give f = 10^(-i/2); over 2 pi * 16
// positions a pair turns 16 f times: 16, 5.06, 1.6, 0.506 ...
TEST_F(SmallOps, RopeFrequenciesFollowTheScaling) {
  RopeShape shape{.head_dim = 16, .theta = 10000.0};
  const std::vector<double> plain = rope_frequencies(shape);
  ASSERT_EQ(plain.size(), 8u);
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(plain[i], std::pow(10.0, -0.5 * i), 1e-15);
  shape.scaling = "linear";
  shape.factor = 4;
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(rope_frequencies(shape)[i], plain[i] / 4);
  shape.scaling = "llama3";
  shape.low_frequency_factor = 1;
  shape.high_frequency_factor = 4;
  shape.original_context = 101;  // about 2 pi * 16
  const std::vector<double> scaled = rope_frequencies(shape);
  EXPECT_EQ(scaled[0], plain[0]);
  EXPECT_EQ(scaled[1], plain[1]);
  const double turns = 101 * 0.1 / (2 * 3.14159265358979), s = (turns - 1) / 3;
  EXPECT_NEAR(turns, 1.6, 0.01);
  EXPECT_NEAR(scaled[2], 0.1 * s + 0.1 / 4 * (1 - s), 1e-15);
  for (size_t i = 3; i < 8; ++i) EXPECT_EQ(scaled[i], plain[i] / 4) << i;
}

TEST_F(SmallOps, RoutingTakesTheBestExpertsAndOfEqualOnesTheFirst) {
  // exp(0) : exp(ln 3) : exp(ln 2) = 1 : 3 : 2; then all equal; then far below and above.
  const float logits[] = {0, std::log(3.0f), std::log(2.0f), 0, 5, 5, 5, 5, -90, 90, 90,
                          0};
  int32_t chosen[6];
  float weights[6];
  const auto run = [&](bool normalize) {
    route_tokens(MatrixView<const float>(logits, 3, 4), normalize,
                 MatrixView<int32_t>(chosen, 3, 2), MatrixView<float>(weights, 3, 2));
  };
  run(false);
  EXPECT_THAT(chosen, ElementsAre(1, 2, 0, 1, 1, 2));
  EXPECT_FLOAT_EQ(weights[0], 3.0f / 7);
  EXPECT_FLOAT_EQ(weights[1], 2.0f / 7);
  EXPECT_FLOAT_EQ(weights[2], 0.25f);
  EXPECT_FLOAT_EQ(weights[5], 0.5f);
  run(true);
  EXPECT_THAT(chosen, ElementsAre(1, 2, 0, 1, 1, 2));
  EXPECT_FLOAT_EQ(weights[0], 0.6f);
  EXPECT_FLOAT_EQ(weights[1], 0.4f);
  EXPECT_FLOAT_EQ(weights[2], 0.5f);
}

TEST_F(SmallOps, EmbeddingLooksUpRowsOfAnyScheme) {
  for (const char* scheme : {"f32", "bf16", "f16", "int4/g32@f16", "nf4/f64@f32", "nf4/f64@dyn8+o/f128@f32",
        "int3/g8@f16", "e4m3/g32@f16", "uint4/g8@uint6/g40@f16+m/g8@uint6/g40@f16",
        "uint2/g8@f16+z/g8@uint2", "ternary/r@f16"}) {
    const LinearWeight weight = random_weight(scheme, 11, 40, 7);
    std::vector<float> all(11 * 40);
    ASSERT_TRUE(weight_rows(weight, 0, MatrixView<float>(all.data(), 11, 40)).ok());
    const int32_t ids[] = {10, 0, 3, 3};
    Spaced y(4, 40);
    ASSERT_TRUE(embedding(ids, weight, y.view()).ok());
    for (int64_t t = 0; t < 4; ++t) {
      EXPECT_EQ(std::memcmp(y.view().row(t), all.data() + ids[t] * 40, 160), 0) << scheme;
    }
    // Row by row, as tokens ask, and together: the same numbers.
    if (!weight.is_plain()) {
      std::vector<float> together(11 * 40);
      ASSERT_TRUE(dequantize_rows(weight.packed, 0, {together.data(), 11, 40}).ok());
      EXPECT_EQ(std::memcmp(y.view().row(0), together.data() + 10 * 40, 160), 0) << scheme;
    }
    EXPECT_TRUE(y.gaps_untouched());
    const int32_t outside[] = {0, 11};
    const Status status = embedding(outside, weight, Spaced(2, 40).view());
    EXPECT_EQ(status.code(), StatusCode::out_of_range);
    EXPECT_EQ(status.message(),
              "[embedding] position 1: a token id must be in [0, 11); found 11; does the "
              "tokenizer belong to this model?");
  }
}

TEST_F(SmallOps, ElementwiseByHand) {
  const float a[4] = {1, -2, 0, 4}, b[4] = {0.5f, 1, -1, -8};
  float y[4];
  add(a, b, 4, y);
  EXPECT_THAT(y, ElementsAre(1.5f, -1, -1, -4));
  relu(a, 4, y);
  EXPECT_THAT(y, ElementsAre(1, 0, 0, 4));
  leaky_relu(a, 0.5f, 4, y);
  EXPECT_THAT(y, ElementsAre(1, -1, 0, 4));
  const float x[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  float padded[12];
  shortcut_pad(x, 1, 3, 3, 2, 1, 1, padded);
  EXPECT_THAT(padded, ElementsAre(0, 0, 0, 0, 1, 3, 7, 9, 0, 0, 0, 0));
  float mean[2];
  const float images[4] = {1, 2, 3, 5};
  global_average_pool(images, 2, 2, mean);
  EXPECT_THAT(mean, ElementsAre(1.5f, 4));
}

}  // namespace
}  // namespace nibble
