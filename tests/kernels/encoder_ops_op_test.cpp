// What an encoder needs beside a decoder's ops: layer_norm, gelu, pooling, attention in
// both directions.
#include <gmock/gmock.h>

#include "kernels/ops/attention/attention.h"
#include "kernels/ops/gelu/gelu.h"
#include "kernels/ops/layer_norm/layer_norm.h"
#include "kernels/ops/pool/pool.h"
#include "op_test.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;

const int64_t kLengths[] = {1, 7, 8, 15, 16, 17, 31, 64, 172, 257, 384};

template <class Kernel>
std::vector<const Kernel*> usable(const std::vector<Kernel>& kernels) {
  std::vector<const Kernel*> rows;
  for (const Kernel& kernel : kernels) {
    if (this_cpu_has(kernel.flags)) rows.push_back(&kernel);
  }
  return rows;
}

class EncoderOps : public OpTest {};

// The bound of layer_norm.h for one value.
double layer_norm_bound(MatrixView<const float> h, int64_t t, int64_t i, double epsilon,
                        double weight, double bias, double y) {
  const auto d = static_cast<double>(h.cols);
  double mean = 0, size = 0, variance = 0;
  for (int64_t c = 0; c < h.cols; ++c) mean += h(t, c) / d, size += std::fabs(h(t, c)) / d;
  for (int64_t c = 0; c < h.cols; ++c) variance += std::pow(h(t, c) - mean, 2) / d;
  const double s = std::sqrt(variance + epsilon);
  const double n = std::fabs(h(t, i) - mean) / s;
  return (std::fabs(weight) * (2 * d * size / s + (d / 2 + 16) * n) + 2 * std::fabs(y) +
          2 * std::fabs(bias)) *
         0x1p-24;
}

TEST_F(EncoderOps, LayerNormRowsGiveWhatTheDefinitionGives) {
  for (const LayerNormKernel* kernel : usable(layer_norm_kernels())) {
    for (int64_t d : kLengths) {
      SCOPED_TRACE(cat(kernel->name, ", ", d, " columns"));
      Spaced x(random_floats(4 * d, 1), 4, d), other(random_floats(4 * d, 2), 4, d, 5);
      for (int64_t i = 0; i < d; ++i) {
        x.view()(1, i) = 1e-4f * x.view()(1, i);  // where epsilon matters
        other.view()(1, i) = 0;
        x.view()(2, i) = other.view()(2, i) = 0.25f;  // no variance at all
        x.view()(3, i) += 20;                         // a mean far from 0
      }
      const std::vector<float> weight = random_floats(d, 3), bias = random_floats(d, 4);
      for (const bool adds : {false, true}) {
        const MatrixView<const float> added =
            adds ? MatrixView<const float>(other.view()) : MatrixView<const float>();
        Spaced h(4, d), y(4, d), expected(4, d);
        for (int64_t t = 0; t < 4; ++t) {
          for (int64_t i = 0; i < d; ++i) {
            h.view()(t, i) = adds ? x.view()(t, i) + other.view()(t, i) : x.view()(t, i);
          }
        }
        const float epsilon = 1e-5f;
        kernel->run(x.view(), added, weight.data(), bias.data(), epsilon, y.view());
        layer_norm_reference(x.view(), added, weight.data(), bias.data(), epsilon,
                             expected.view());
        for (int64_t t = 0; t < 4; ++t) {
          for (int64_t i = 0; i < d; ++i) {
            const double e = expected.view()(t, i);
            const auto column = static_cast<size_t>(i);
            ASSERT_LE(std::fabs(y.view()(t, i) - e),
                      layer_norm_bound(h.view(), t, i, epsilon, weight[column],
                                       bias[column], e))
                << "row " << t << ", column " << i << ": " << y.view()(t, i) << ", expected "
                << e;
          }
        }
        EXPECT_TRUE(y.gaps_untouched());
        // In place of either operand.
        for (const bool over_added : {false, true}) {
          if (over_added && !adds) continue;
          Spaced a = x, b = other;
          Spaced& out = over_added ? b : a;
          kernel->run(a.view(),
                      adds ? MatrixView<const float>(b.view()) : MatrixView<const float>(),
                      weight.data(), bias.data(), epsilon, out.view());
          for (int64_t t = 0; t < 4; ++t) {
            EXPECT_EQ(std::memcmp(out.view().row(t), y.view().row(t),
                                  static_cast<size_t>(d) * 4),
                      0);
          }
        }
      }
    }
  }
}

TEST_F(EncoderOps, LayerNormByHand) {
  const float x[4] = {1, 2, 3, 6}, zero[4] = {}, weight[4] = {1, 1, 2, 1},
              bias[4] = {0, 0, 0, 1};
  float y[4];
  layer_norm_reference({x, 1, 4}, {zero, 1, 4}, weight, bias, 0.5f, {y, 1, 4});
  const float scale = 1 / std::sqrt(14.0f / 4 + 0.5f);  // mean 3, squares 4 + 1 + 0 + 9
  EXPECT_THAT(y, ElementsAre(FloatEq(-2 * scale), FloatEq(-scale), FloatEq(0),
                             FloatEq(3 * scale + 1)));
}

TEST_F(EncoderOps, GeluRowsGiveWhatTheDefinitionGives) {
  std::vector<float> x = random_floats(257, 5);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= i % 5 == 0 ? 6.0f : 2.0f;
  const float special[] = {0,     -0.0f, 5.54f, -5.54f, 6,    -6,    -6.01f,
                           -7,    87,    -88,   1e4f,   -1e4, 1e30f, -1e30f,
                           1e-20f, -1e-20f};
  std::copy(std::begin(special), std::end(special), x.begin() + 100);
  for (const bool tanh : {false, true}) {
    std::vector<float> expected(257);
    (tanh ? gelu_tanh_reference : gelu_reference)(x.data(), 257, expected.data());
    for (const GeluKernel* kernel : usable(gelu_kernels())) {
      const GeluFunction run = tanh ? kernel->run_tanh : kernel->run;
      for (int64_t n : kLengths) {
        if (n > 257) continue;
        SCOPED_TRACE(cat(kernel->name, tanh ? " tanh, " : ", ", n, " values"));
        std::vector<float> y(static_cast<size_t>(n) + 1, kPoison);
        run(x.data(), n, y.data());
        for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
          const double e = expected[i];
          ASSERT_LE(std::fabs(y[i] - e),
                    8 * 0x1p-24 * (std::min(std::fabs(x[i]), 6.0f) + std::fabs(e)))
              << "x " << x[i] << ": " << y[i] << ", expected " << e;
        }
        EXPECT_TRUE(std::isnan(y.back()));
      }
      const float nan = kPoison;
      float y = 0;
      run(&nan, 1, &y);
      EXPECT_TRUE(std::isnan(y)) << kernel->name << " hides a NaN";
    }
  }
}

// Every float between -8 and 8 that a step of 2^-12 meets: the fit has no bad spot.
TEST_F(EncoderOps, GeluKeepsItsBoundEverywhere) {
  std::vector<float> x;
  for (int i = -(8 << 12); i <= 8 << 12; ++i) x.push_back(static_cast<float>(i) * 0x1p-12f);
  const auto n = static_cast<int64_t>(x.size());
  std::vector<float> y(x.size()), expected(x.size());
  gelu_reference(x.data(), n, expected.data());
  for (const GeluKernel* kernel : usable(gelu_kernels())) {
    kernel->run(x.data(), n, y.data());
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double bound = 8 * 0x1p-24 * (std::min(std::fabs(x[i]), 6.0f) +
                                          std::fabs(static_cast<double>(expected[i])));
      if (x[i] != 0) {
        worst = std::max(worst, std::fabs(static_cast<double>(y[i]) - expected[i]) / bound);
      }
    }
    EXPECT_LE(worst, 1) << kernel->name;
  }
}

TEST_F(EncoderOps, GeluByHand) {
  const float x[3] = {0, 1, -1};
  float y[3];
  gelu_reference(x, 3, y);  // Phi(1) = 0.8413447460685429
  EXPECT_THAT(y, ElementsAre(0, FloatEq(0.84134475f), FloatEq(-0.15865525f)));
  gelu_tanh_reference(x, 3, y);
  EXPECT_THAT(y, ElementsAre(0, FloatEq(0.84119199f), FloatEq(-0.15880801f)));
}

TEST_F(EncoderOps, TablesFollowTheForcedLevel) {
  for (const std::string& level : cpu_levels()) {
    ASSERT_TRUE(force_cpu(level).ok());
    EXPECT_EQ(select_layer_norm().name, "layer_norm_f32__" + isa_under(level));
    EXPECT_EQ(select_gelu().name, "gelu_f32__" + isa_under(level));
  }
}

TEST_F(EncoderOps, PoolingByHand) {
  Spaced x(std::vector<float>{1, 2, 3, 6, 5, -2}, 3, 2);
  float y[2];
  mean_pool(x.view(), y);
  EXPECT_THAT(y, ElementsAre(3, 2));
  Spaced z(std::vector<float>{3, 4, 0, 0, -1e-20f, 0}, 3, 2);
  l2_normalize(z.view(), z.view());
  EXPECT_FLOAT_EQ(z.view()(0, 0), 0.6f);
  EXPECT_FLOAT_EQ(z.view()(0, 1), 0.8f);
  EXPECT_EQ(z.view()(1, 0), 0);
  EXPECT_FLOAT_EQ(z.view()(2, 0), -1e-8f);  // divided by 1e-12, not by its length
  EXPECT_TRUE(z.gaps_untouched());
}

TEST_F(EncoderOps, MeanPoolTakesAnyNumberOfColumns) {
  for (const int64_t d : kLengths) {
    const Spaced x(random_floats(5 * d, 6), 5, d);
    std::vector<float> y(static_cast<size_t>(d) + 1, kPoison);
    mean_pool(x.view(), y.data());
    for (int64_t c = 0; c < d; ++c) {
      double sum = 0;
      for (int64_t t = 0; t < 5; ++t) sum += x.view()(t, c);
      ASSERT_FLOAT_EQ(y[static_cast<size_t>(c)], static_cast<float>(sum / 5));
    }
    EXPECT_TRUE(std::isnan(y.back()));
  }
}

// Every token sees the last one: what a mask would hide.
TEST_F(EncoderOps, AttentionInBothDirectionsSeesEveryToken) {
  for (const AttentionKernel* kernel : usable(attention_kernels())) {
    for (const int64_t tokens : {1, 3, 4, 12, 13, 40}) {
      SCOPED_TRACE(cat(kernel->name, ", ", tokens, " tokens"));
      const AttentionShape shape{
          .heads = 2, .kv_heads = 2, .head_dim = 32, .scale = 0.18f, .causal = false};
      const Spaced q(random_floats(tokens * 64, 7), tokens, 64);
      const Spaced k(random_floats(tokens * 64, 8), tokens, 64, 7);
      const Spaced v(random_floats(tokens * 64, 9), tokens, 64, 11);
      Spaced y(tokens, 64);
      attention(*kernel, shape, q.view(), k.view(), v.view(), y.view());
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t h = 0; h < 2; ++h) {
          std::vector<double> a(static_cast<size_t>(tokens));
          double sum = 0;
          for (int64_t j = 0; j < tokens; ++j) {
            double score = 0;
            for (int64_t d = 32 * h; d < 32 * h + 32; ++d) {
              score += static_cast<double>(q.view()(t, d)) * k.view()(j, d);
            }
            sum += a[static_cast<size_t>(j)] = std::exp(0.18 * score);
          }
          for (int64_t d = 32 * h; d < 32 * h + 32; ++d) {
            double expected = 0;
            for (int64_t j = 0; j < tokens; ++j) {
              expected += a[static_cast<size_t>(j)] / sum * v.view()(j, d);
            }
            ASSERT_NEAR(y.view()(t, d), expected, 1e-5) << "token " << t << ", column " << d;
          }
        }
      }
      EXPECT_TRUE(y.gaps_untouched());
    }
  }
}

}  // namespace
}  // namespace nibble
