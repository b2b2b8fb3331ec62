#include "ptq/module/fake_quantize.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/scheme/coded_matrix.h"
#include "ptq/error.h"
#include "ptq/module/fake_quantize_kernel.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

template <class Call>
Status status_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.status();
  }
  return ok_status();
}

torch::Tensor random(std::vector<int64_t> shape, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, at::kFloat);
}

// What kernels/scheme makes of x, scales chosen by the rule.
torch::Tensor through_kernels(const torch::Tensor& x, CodedMatrix levels) {
  torch::Tensor y = at::empty_like(x);
  const int64_t rows = x.size(0), cols = x.numel() / rows;
  throw_if_error(quantize({x.const_data_ptr<float>(), rows, cols}, levels));
  throw_if_error(dequantize(levels, {y.mutable_data_ptr<float>(), rows, cols}));
  return y;
}
CodedMatrix chosen(const torch::Tensor& x, const QuantScheme& scheme,
                   ScaleRule rule = {}) {
  const int64_t rows = x.size(0), cols = x.numel() / rows;
  return value_or_throw(
      choose_scales({x.const_data_ptr<float>(), rows, cols}, scheme, rule));
}

// --- forward: the arithmetic that ships, bit for bit

class EveryScheme : public ::testing::TestWithParam<const char*> {};

TEST_P(EveryScheme, ForwardIsKernelsArithmeticAndTheCodesShip) {
  const QuantScheme scheme = *parse_scheme(GetParam());
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{1, 1}, {3, 5}, {7, 172}, {16, 3, 3, 3}, {64, 129}}) {
    const torch::Tensor x = random(shape, 1) * 0.7 + 0.1;
    FakeQuantize quantizer(scheme, ScaleRule{});
    const torch::Tensor y = quantizer->forward(x);
    const CodedMatrix levels = chosen(x, scheme);
    const torch::Tensor expected = through_kernels(x, levels);
    EXPECT_EQ(0, std::memcmp(y.const_data_ptr(), expected.const_data_ptr(), x.nbytes()))
        << GetParam() << " " << x.sizes();
    // What ships stands for the same floats.
    const CodedMatrix shipped = quantizer->coded(x);
    torch::Tensor again = at::empty_like(x);
    throw_if_error(dequantize(
        shipped, {again.mutable_data_ptr<float>(), shipped.rows, shipped.cols}));
    EXPECT_TRUE(at::equal(again, y));
  }
}

INSTANTIATE_TEST_SUITE_P(
    FakeQuantize, EveryScheme,
    ::testing::Values("int4/g32@f16", "int4n/r@f32", "int8n/r@f32", "int8/t@f32",
                      "uint8/t@f32", "int2/g16@f16", "uint4/g32@f16+z/g32@uint4",
                      "uint4/r@f32+z/r@uint4", "int4/g16@e4m3/t@f32", "int4/g32@e8m0",
                      "int3/g64@bf16", "uint4/g32@f16+m/g32@f16", "nf4/f64@f32",
                      "e4m3/t@f32", "e2m1/g16@e4m3/t@f32", "int4/c@f32", "fp4/f64@f32",
                      "nf4/f64@dyn8+o/f256@f32", "iq4nl/g32@f16", "ternary/r@f32",
                      "binary/r@f32", "dyn8/r@f32", "e5m2/r@f32", "e4m3/b2x16@f32",
                      "e2m1/g32@e8m0", "int8n/b2x16@f32",
                      "uint4/g32@uint6/g256@f16+m/g32@uint6/g256@f16"));

// Every number of an element, what lies between two of them, and a step to either side.
class EveryElement : public ::testing::TestWithParam<const char*> {};

TEST_P(EveryElement, TiesZerosAndFarValuesAreTheCodecs) {
  const QuantScheme scheme = *parse_scheme(cat(GetParam(), "/t@f32"));
  std::vector<float> numbers;
  for (int code = 0; code < 1 << element_info(scheme.code).bits; ++code) {
    const float value = value_of(scheme.code, static_cast<uint8_t>(code));
    if (std::isfinite(value)) numbers.push_back(value);
  }
  std::sort(numbers.begin(), numbers.end());
  std::vector<float> values = {0.0f, -0.0f, 1e-42f, -1e-42f, 3e38f, -3e38f};
  for (size_t i = 0; i < numbers.size(); ++i) {
    const float next = numbers[std::min(i + 1, numbers.size() - 1)];
    for (const float x : {numbers[i], (numbers[i] + next) / 2, next * 1.01f}) {
      for (const float end : {-INFINITY, x, INFINITY})
        values.push_back(std::nextafter(x, end));
    }
  }
  const torch::Tensor x = at::tensor(values).view({1, -1});
  CodedMatrix levels = chosen(x, scheme);
  levels.scales[0].values[0] = 1.0f;
  FakeQuantize quantizer(scheme, ScaleRule{});
  quantizer->set_levels(levels);
  const torch::Tensor y = quantizer->forward(x), expected = through_kernels(x, levels);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>(y.const_data_ptr<float>()[i]),
              std::bit_cast<uint32_t>(expected.const_data_ptr<float>()[i]))
        << GetParam() << " of " << values[i];
  }
}

INSTANTIATE_TEST_SUITE_P(FakeQuantize, EveryElement,
                         ::testing::Values("int4", "uint8", "nf4", "fp4", "iq4nl", "e2m1",
                                           "e4m3", "e5m2", "dyn8", "ternary", "binary"));

TEST(FakeQuantize, RoundsHalfToEvenAndGivesNoNegativeZero) {
  FakeQuantize quantizer(ActivationScheme{*parse_scheme("int4/t@f32"), false, 0.5f, 0});
  const torch::Tensor x =
      at::tensor({0.25f, 0.75f, -0.25f, -0.75f, 1.25f, 9.0f, -9.0f, -0.1f});
  const torch::Tensor y = quantizer->forward(x);
  EXPECT_TRUE(
      at::equal(y, at::tensor({0.0f, 1.0f, 0.0f, -1.0f, 1.0f, 3.5f, -4.0f, 0.0f})));
  for (int64_t i = 0; i < y.numel(); ++i) {
    EXPECT_FALSE(std::signbit(y[i].item<float>()) && y[i].item<float>() == 0) << i;
  }
}

TEST(FakeQuantize, AStaticZeroPointShiftsTheRange) {
  FakeQuantize quantizer(
      ActivationScheme{*parse_scheme("uint8/t@f32"), false, 0.1f, 100});
  const torch::Tensor x = random({4, 50}, 2) * 20;
  const torch::Tensor q = at::clamp(at::round(x / 0.1f) + 100, 0, 255);
  EXPECT_TRUE(at::equal(quantizer->forward(x), (q - 100) * 0.1f));
}

TEST(FakeQuantize, ADynamicActivationHasOneScaleARow) {
  FakeQuantize quantizer(ActivationScheme{*parse_scheme("int8n/r@f32"), true, 0, 0});
  const torch::Tensor x = random({2, 3, 40}, 3);
  const torch::Tensor s = std::get<0>(x.abs().max(-1, true)) / 127;
  EXPECT_TRUE(at::equal(quantizer->forward(x), at::round(x / s) * s));
}

TEST(FakeQuantize, KeepsTheMemoryFormat) {
  FakeQuantize quantizer(ActivationScheme{*parse_scheme("int8/t@f32"), false, 0.02f, 0});
  const torch::Tensor x = random({2, 8, 5, 5}, 4);
  const torch::Tensor last = x.contiguous(at::MemoryFormat::ChannelsLast);
  EXPECT_TRUE(at::equal(quantizer->forward(x), quantizer->forward(last)));
  EXPECT_TRUE(quantizer->forward(last).is_contiguous(at::MemoryFormat::ChannelsLast));
  EXPECT_TRUE(at::equal(quantizer->forward(x.transpose(1, 2)),
                        quantizer->forward(x).transpose(1, 2)));
}

TEST(FakeQuantize, ErrorOfTheSchemeIsWhatItsBitsGive) {
  const torch::Tensor x = random({64, 512}, 5);
  for (const auto& [text, lowest, highest] : {std::tuple{"int8n/r@f32", 38.0, 45.0},
                                              {"int4n/g32@f32", 17.0, 21.5},
                                              {"int2/g32@f32", 1.5, 8.0}}) {
    FakeQuantize quantizer(*parse_scheme(text), ScaleRule{});
    const double noise = (quantizer->forward(x) - x).square().mean().item<double>();
    const double snr = 10 * std::log10(x.square().mean().item<double>() / noise);
    EXPECT_GE(snr, lowest) << text;
    EXPECT_LE(snr, highest) << text;
  }
}

// --- backward

// The surrogate that straight-through differentiates, in double: the rounding error of
// each value is a constant c, y = s * clamp(x / s + c, low, high).
struct Surrogate {
  torch::Tensor c;
  double low, high;
  torch::Tensor operator()(const torch::Tensor& x, const torch::Tensor& s) const {
    return s * at::clamp(x / s + c, low, high);
  }
};

TEST(FakeQuantize, GradientsAreFiniteDifferencesOfTheSurrogate) {
  const QuantScheme scheme = *parse_scheme("int4/r@f32");
  const torch::Tensor x0 = random({3, 40}, 6);
  CodedMatrix levels = chosen(x0, scheme);
  for (float& s : levels.scales[0].values) s *= 0.4f;  // many values outside
  const torch::Tensor s0 = at::tensor(levels.scales[0].values).view({3, 1});

  FakeQuantize quantizer(scheme, ScaleRule{});
  quantizer->set_levels(levels);
  quantizer->learn_scale();
  torch::Tensor x = x0.clone().requires_grad_();
  const torch::Tensor toward = random({3, 40}, 7);
  (quantizer->forward(x) * toward).sum().backward();
  const torch::Tensor ds = quantizer->parameters()[0].grad();

  const torch::Tensor xd = x0.to(at::kDouble), sd = s0.to(at::kDouble),
                      td = toward.to(at::kDouble);
  const torch::Tensor u = xd / sd;
  const torch::Tensor clipped = u.clamp(-8, 7);
  const Surrogate surrogate{clipped.round() - clipped, -8, 7};
  const double step = 1e-6;
  int outside = 0;
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t i = 0; i < 40; ++i) {
      // Near the border the clamp's corner lies within c of u; there the mask decides.
      const double value = u[r][i].item<double>();
      const bool inside = value >= -8 && value <= 7;
      const double dx = x.grad()[r][i].item<double>();
      outside += !inside;
      EXPECT_EQ(dx, inside ? toward[r][i].item<double>() : 0.0);
      const double moved = value + surrogate.c[r][i].item<double>();
      if (moved <= -8 || moved >= 7) continue;
      torch::Tensor up = xd.clone(), down = xd.clone();
      up[r][i] += step;
      down[r][i] -= step;
      const double difference =
          ((surrogate(up, sd) - surrogate(down, sd)) * td).sum().item<double>() /
          (2 * step);
      EXPECT_NEAR(dx, difference, 1e-6);
    }
    torch::Tensor up = sd.clone(), down = sd.clone();
    up[r] += step;
    down[r] -= step;
    // Only values away from the corner, as above; n = 40 values a scale, Qp = 7.
    const torch::Tensor moved = u + surrogate.c;
    const torch::Tensor smooth =
        (u < -8).logical_or(u > 7).logical_or((moved > -8).logical_and(moved < 7));
    const torch::Tensor corner =
        (smooth.logical_not()) * (u.clamp(-8, 7).round() - u) * td;
    const double difference =
        ((surrogate(xd, up) - surrogate(xd, down)) * td * smooth).sum().item<double>() /
        (2 * step);
    EXPECT_NEAR(ds[r].item<double>(),
                (difference + corner[r].sum().item<double>()) / std::sqrt(40.0 * 7.0),
                1e-5);
  }
  EXPECT_GT(outside, 10);
  EXPECT_LT(outside, 90);
}

// The same for every kind of code and block. Inside the range the rounding error c of a
// value is a constant, y = s (u + c) + m; outside v is one, y = s v + m.
class LearnedScheme : public ::testing::TestWithParam<const char*> {};

TEST_P(LearnedScheme, GradientsAreFiniteDifferencesOfTheSurrogate) {
  const QuantScheme scheme = *parse_scheme(GetParam());
  constexpr int64_t kRows = 6, kCols = 40;
  const torch::Tensor x0 = random({kRows, kCols}, 6) + 0.2;
  CodedMatrix levels = chosen(x0, scheme);
  for (float& s : levels.scales[0].values)  // many values outside
    s = round_to_element(scheme.scales[0].element, s * 0.5f);
  const torch::Tensor y = through_kernels(x0, levels), toward = random({6, 40}, 7);

  FakeQuantize quantizer(scheme, ScaleRule{});
  quantizer->set_levels(levels);
  quantizer->learn_scale();
  const bool minima = scheme.offset == OffsetKind::minimum;
  if (minima) quantizer->learn_minimum();
  torch::Tensor x = x0.clone().requires_grad_();
  (quantizer->forward(x) * toward).sum().backward();

  const bool integer = element_info(scheme.code).kind == ElementKind::integer;
  const double lowest = integer ? code_lowest(scheme) : element_info(scheme.code).lowest,
               highest =
                   integer ? code_highest(scheme) : element_info(scheme.code).highest;
  std::vector<double> scales(levels.scales[0].values.begin(),
                             levels.scales[0].values.end()),
      offsets, xs(x0.const_data_ptr<float>(), x0.const_data_ptr<float>() + x0.numel());
  if (minima)
    offsets.assign(levels.offsets[0].values.begin(), levels.offsets[0].values.end());
  // The product of the levels at (r, c), the innermost from `first`.
  const auto product = [&](const std::vector<ScaleLevel>& blocks,
                           const std::vector<CodedLevel>& all,
                           const std::vector<double>& first, int64_t r, int64_t c) {
    double value = 1;
    for (size_t k = 0; k < all.size(); ++k) {
      const size_t i =
          static_cast<size_t>(level_index(blocks[k].block, kRows, kCols, r, c));
      value *= k == 0 ? first[i] : all[k].values[i];
    }
    return all.empty() ? 0.0 : value;
  };
  std::vector<double> error(xs.size()), number(xs.size());
  std::vector<bool> inside(xs.size());
  const auto loss = [&](bool first) {
    double sum = 0;
    for (size_t i = 0; i < xs.size(); ++i) {
      const int64_t r = static_cast<int64_t>(i) / kCols,
                    c = static_cast<int64_t>(i) % kCols;
      const double s = product(scheme.scales, levels.scales, scales, r, c),
                   m = product(scheme.offsets, levels.offsets, offsets, r, c);
      const double u = (xs[i] - m) / s;
      if (first) {
        number[i] = (y[r][c].item<double>() - m) / s;
        error[i] = number[i] - u;
        inside[i] = u >= lowest && u <= highest;
      }
      sum +=
          (s * (inside[i] ? u + error[i] : number[i]) + m) * toward[r][c].item<double>();
    }
    return sum;
  };
  loss(true);
  const auto difference = [&](double& value) {
    const double at = value, step = 1e-5 * std::max(1e-3, std::abs(at));
    value = at + step;
    const double up = loss(false);
    value = at - step;
    const double down = loss(false);
    value = at;
    return (up - down) / (2 * step);
  };
  int64_t out = 0;
  for (size_t i = 0; i < xs.size(); ++i) {
    out += !inside[i];
    if (i % 7 == 0) {
      EXPECT_NEAR(x.grad().view(-1)[static_cast<int64_t>(i)].item<double>(),
                  difference(xs[i]), 1e-5)
          << i;
    }
  }
  EXPECT_GT(out, 3) << GetParam();
  EXPECT_LT(out, 200) << GetParam();
  const double n = static_cast<double>(xs.size()) / static_cast<double>(scales.size());
  const double g = 1 / std::sqrt(n * highest);
  const auto near = [&](const char* name, std::vector<double>& values) {
    const torch::Tensor gradient = quantizer->named_parameters()[name].grad();
    double size = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const double expected = g * difference(values[i]);
      size += std::abs(expected);
      EXPECT_NEAR(gradient[static_cast<int64_t>(i)].item<double>(), expected,
                  1e-4 * (1 + std::abs(expected)))
          << name << " " << i;
    }
    EXPECT_GT(size, 1e-3);
  };
  near("scale", scales);
  if (minima) near("minimum", offsets);
}

INSTANTIATE_TEST_SUITE_P(FakeQuantize, LearnedScheme,
                         ::testing::Values("nf4/f64@f32", "fp4/f64@f32",
                                           "nf4/f64@f32/f128@f32", "e2m1/g32@e8m0",
                                           "e2m1/g16@e4m3/t@f32", "e4m3/r@f32",
                                           "e5m2/t@f32", "e4m3/b4x8@f32", "iq4nl/g32@f16",
                                           "ternary/r@f32", "int4/c@f32",
                                           "int8n/b2x16@f32", "uint4/g8@f32+m/g8@f32",
                                           "uint2/g16@f16+m/g16@f16"));

TEST(FakeQuantize, LearnedMinimaOfIntegersMoveInTheUnitOfTheWeights) {
  const QuantScheme scheme = *parse_scheme("uint4/g8@f32+m/g8@uint6/r@f16");
  const torch::Tensor x = random({2, 16}, 6);
  FakeQuantize quantizer(scheme, ScaleRule{});
  const CodedMatrix levels = chosen(x, scheme);
  quantizer->set_levels(levels);
  quantizer->learn_scale();
  quantizer->learn_minimum();
  EXPECT_EQ(quantizer->coded(x).offsets[0].values, levels.offsets[0].values);
  const float unit = at::tensor(levels.offsets[1].values).abs().mean().item<float>();
  const torch::Tensor minimum = quantizer->named_parameters()["minimum"];
  {
    torch::NoGradGuard no_grad;
    minimum[0] = 2.4f * unit;
    minimum[1] = 999.0f;
  }
  quantizer->keep_positive();
  EXPECT_EQ(quantizer->coded(x).offsets[0].values[0], 2.0f);
  EXPECT_EQ(quantizer->coded(x).offsets[0].values[1], 63.0f);

  FakeQuantize without(*parse_scheme("int4/r@f32"), ScaleRule{});
  Status status = status_of([&] { without->learn_minimum(); });
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_THAT(status.message(), HasSubstr("minima of integers or floats were required"));
  FakeQuantize fixed(scheme, ScaleRule{});
  status = status_of([&] { fixed->learn_minimum(); });
  EXPECT_EQ(status.code(), StatusCode::failed_precondition);
}

// The same gradient written with torch's own autograd and detach().
torch::Tensor by_detach(const torch::Tensor& x, const torch::Tensor& s, double low,
                        double high, double gradient_scale) {
  const torch::Tensor scaled = s * gradient_scale + (s - s * gradient_scale).detach();
  const torch::Tensor u = (x / scaled).clamp(low, high);
  return (u.round() - u).detach() * scaled + u * scaled;
}

TEST(FakeQuantize, LearnedZeroPointsHaveTheGradientOfTheDefinition) {
  const QuantScheme scheme = *parse_scheme("uint2/g8@f32+z/g8@uint2");
  const torch::Tensor x0 = random({3, 20}, 6);  // a remainder group of 4
  CodedMatrix levels = chosen(x0, scheme);
  for (float& s : levels.scales[0].values) s *= 0.5f;  // many values outside
  FakeQuantize quantizer(scheme, ScaleRule{});
  quantizer->set_levels(levels);
  quantizer->learn_scale();
  quantizer->learn_zero_point();
  const torch::Tensor toward = random({3, 20}, 7);
  torch::Tensor x = x0.clone().requires_grad_();
  const torch::Tensor y = quantizer->forward(x);
  EXPECT_TRUE(at::equal(y, through_kernels(x0, levels)));
  (y * toward).sum().backward();
  const torch::Tensor zero = quantizer->named_parameters()["zero"];
  const float unit = at::tensor(levels.scales[0].values).mean().item<float>();
  const double g = 1.0 / std::sqrt(60.0 / 9.0 * 3.0);  // 60 values, 9 scales, Qp 3
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t c = 0; c < 3; ++c) {
      const size_t cell = static_cast<size_t>(r * 3 + c);
      const double s = levels.scales[0].values[cell], z = levels.offsets[0].values[cell];
      double sum = 0;
      for (int64_t i = c * 8; i < std::min<int64_t>(20, c * 8 + 8); ++i) {
        const double u = x0[r][i].item<double>() / s + z;
        if (u < 0 || u > 3) sum -= s * toward[r][i].item<double>();
      }
      EXPECT_NEAR(zero.grad()[static_cast<int64_t>(cell)].item<double>(), g * sum / unit,
                  1e-4);
    }
  }
  EXPECT_GT(zero.grad().abs().sum().item<double>(), 0.1);
  // Rounded to a code, and held in its range.
  {
    torch::NoGradGuard no_grad;
    zero[0] = 1.4f * unit;
    zero[1] = 99.0f;
    zero[2] = -99.0f;
  }
  quantizer->keep_positive();
  const CodedMatrix now = quantizer->coded(x0);
  EXPECT_EQ(now.offsets[0].values[0], 1.0f);
  EXPECT_EQ(now.offsets[0].values[1], 3.0f);
  EXPECT_EQ(now.offsets[0].values[2], 0.0f);

  FakeQuantize symmetric(*parse_scheme("int4/r@f32"), ScaleRule{});
  symmetric->set_levels(chosen(x0, symmetric->scheme()));
  const Status status = status_of([&] { symmetric->learn_zero_point(); });
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_THAT(status.message(), HasSubstr("integer zero points in one level"));
}

TEST(FakeQuantize, GradientsAgreeWithAutogradThroughDetach) {
  struct Case {
    std::vector<int64_t> shape;
    float scale;
    const char* scheme;
    double low, high;
  };
  for (const Case& c : {Case{{4, 16, 9, 9}, 0.1f, "uint4/t@f32", 0, 15},
                        Case{{2, 40000}, 0.05f, "int8/t@f32", -128, 127},
                        Case{{3, 7}, 0.6f, "int4n/t@f32", -7, 7}}) {
    FakeQuantize quantizer(ActivationScheme{*parse_scheme(c.scheme), false, c.scale, 0});
    quantizer->learn_scale();
    torch::Tensor x = random(c.shape, 8).requires_grad_();
    const torch::Tensor toward = random(c.shape, 9);
    const torch::Tensor y = quantizer->forward(x);
    (y * toward).sum().backward();

    torch::Tensor x2 = x.detach().clone().requires_grad_();
    torch::Tensor s2 = at::tensor(c.scale).requires_grad_();
    const double n = static_cast<double>(x.numel() / c.shape[0]);  // of one sample
    const torch::Tensor y2 = by_detach(x2, s2, c.low, c.high, 1 / std::sqrt(n * c.high));
    (y2 * toward).sum().backward();
    EXPECT_TRUE(at::allclose(y, y2, 1e-6, 1e-6)) << c.scheme;
    EXPECT_TRUE(at::allclose(x.grad(), x2.grad(), 1e-6, 1e-7)) << c.scheme;
    const double ds = quantizer->parameters()[0].grad().item<double>();
    EXPECT_NEAR(ds, s2.grad().item<double>(), 1e-4 * (1 + std::abs(ds))) << c.scheme;
    EXPECT_GT(std::abs(ds), 1e-3);
  }
}

TEST(FakeQuantize, LearnedGroupScalesAreRoundedToTheirElementAndTrainThroughOuterLevels) {
  for (const char* text :
       {"int4/g32@f16", "int4/g16@e4m3/t@f32", "uint4/g32@f16+z/g32@uint4"}) {
    const QuantScheme scheme = *parse_scheme(text);
    const torch::Tensor x0 = random({6, 70}, 10);
    const CodedMatrix levels = chosen(x0, scheme);
    FakeQuantize quantizer(scheme, ScaleRule{});
    quantizer->set_levels(levels);
    quantizer->learn_scale();
    torch::Tensor parameter = quantizer->parameters()[0];
    {
      torch::NoGradGuard no_grad;
      parameter.mul_(0.83f);  // not on the element's grid any more
    }
    torch::Tensor x = x0.clone().requires_grad_();
    const torch::Tensor y = quantizer->forward(x);
    CodedMatrix rounded = levels;
    for (float& s : rounded.scales[0].values) {
      s = round_to_element(scheme.scales[0].element, s * 0.83f);
    }
    EXPECT_TRUE(at::equal(y, through_kernels(x0, rounded))) << text;
    const CodedMatrix shipped = quantizer->coded(x);
    EXPECT_EQ(shipped.scales, rounded.scales) << text;
    EXPECT_EQ(shipped.offsets, rounded.offsets) << text;

    // ds of one group, by the formula, value by value.
    const torch::Tensor toward = random({6, 70}, 11);
    (y * toward).sum().backward();
    const std::vector<float> s = expanded_scales(rounded);
    const std::vector<float> z = expanded_offsets(rounded);
    const int64_t cols = 70, group = scheme.scales[0].block.cols, row = 2, g = 1;
    double sum = 0;
    for (int64_t c = g * group; c < (g + 1) * group; ++c) {
      const int64_t i = row * cols + c;
      const double u = x0[row][c].item<float>() / s[i];
      const double v = y.detach()[row][c].item<float>() / s[i];
      const bool inside =
          u + z[i] >= code_lowest(scheme) && u + z[i] <= code_highest(scheme);
      sum += toward[row][c].item<double>() * (inside ? v - u : v);
    }
    const int64_t groups = (cols + group - 1) / group;
    const double outer =
        s[row * cols + g * group] / rounded.scales[0].values[row * groups + g];
    const double n = 6.0 * 70 / parameter.numel();
    const double expected = sum * outer / std::sqrt(n * code_highest(scheme));
    EXPECT_NEAR(parameter.grad()[row * groups + g].item<double>(), expected,
                1e-4 * (1 + std::abs(expected)))
        << text;
  }
}

TEST(FakeQuantize, TheGeneralPathHasTheSameGradientsAsTheGrid) {
  // int4/c@f32 on a transposed matrix is int4/r@f32: one goes element by element, one by
  // grid.
  const torch::Tensor x0 = random({9, 30}, 12);
  const QuantScheme by_row = *parse_scheme("int4/r@f32"),
                    by_column = *parse_scheme("int4/c@f32");
  CodedMatrix rows = chosen(x0, by_row);
  for (float& s : rows.scales[0].values) s *= 0.6f;
  CodedMatrix columns = chosen(x0.t().contiguous(), by_column);
  columns.scales[0].values = rows.scales[0].values;
  const torch::Tensor toward = random({9, 30}, 13);
  torch::Tensor outputs[2], gradients[2], scales[2];
  for (const bool transposed : {false, true}) {
    FakeQuantize quantizer(transposed ? by_column : by_row, ScaleRule{});
    quantizer->set_levels(transposed ? columns : rows);
    quantizer->learn_scale();
    torch::Tensor x = (transposed ? x0.t().contiguous() : x0.clone()).requires_grad_();
    const torch::Tensor y = quantizer->forward(x);
    (y * (transposed ? toward.t() : toward)).sum().backward();
    outputs[transposed] = transposed ? y.t() : y;
    gradients[transposed] = transposed ? x.grad().t() : x.grad();
    scales[transposed] = quantizer->parameters()[0].grad();
  }
  EXPECT_TRUE(at::equal(outputs[0], outputs[1]));
  EXPECT_TRUE(at::equal(gradients[0], gradients[1]));
  EXPECT_TRUE(at::allclose(scales[0], scales[1], 1e-4, 1e-5));
}

TEST(FakeQuantize, SameBitsAtAnyThreadCount) {
  const torch::Tensor x0 = random({8, 16, 33, 33}, 14);
  const int before = at::get_num_threads();
  std::vector<torch::Tensor> results[2];
  for (const int threads : {1, 4}) {
    at::set_num_threads(threads);
    FakeQuantize activation(
        ActivationScheme{*parse_scheme("uint8/t@f32"), false, 0.01f, 0});
    activation->learn_scale();
    torch::Tensor x = x0.clone().requires_grad_();
    const torch::Tensor y = activation->forward(x);
    y.square().sum().backward();
    results[threads == 4] = {y.detach(), x.grad(), activation->parameters()[0].grad()};
  }
  at::set_num_threads(before);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(results[0][i], results[1][i])) << i;
}

TEST(FakeQuantize, PactLearnsItsClipFromWhatIsClippedAlone) {
  for (const char* text : {"uint4/t@f32", "int4/t@f32"}) {
    const QuantScheme scheme = *parse_scheme(text);
    const torch::Tensor x0 = random({5, 40}, 18);
    constexpr float kScale = 0.0625f;
    FakeQuantize quantizer(ActivationScheme{scheme, false, kScale, 0});
    quantizer->learn_clip();
    EXPECT_TRUE(quantizer->learns_scale());
    const torch::Tensor alpha = quantizer->named_parameters()["alpha"];
    const float top = static_cast<float>(code_highest(scheme)),
                bottom = static_cast<float>(code_lowest(scheme));
    EXPECT_EQ(alpha.item<float>(), kScale * top);
    torch::Tensor x = x0.clone().requires_grad_();
    const torch::Tensor toward = random({5, 40}, 19);
    (quantizer->forward(x) * toward).sum().backward();
    // y = clamp(x, bottom / top * a, a): eq. 1 and 3, and the same below 0.
    const torch::Tensor above = x0 > kScale * top, below = x0 < kScale * bottom;
    const double expected = (toward * above).sum().item<double>() +
                            bottom / top * (toward * below).sum().item<double>();
    EXPECT_NEAR(alpha.grad().item<double>(), expected, 1e-5);
    EXPECT_TRUE(at::equal(x.grad(), toward * above.logical_or(below).logical_not()));
    EXPECT_GT(above.sum().item<int64_t>(), 5);
    {
      torch::NoGradGuard no_grad;
      alpha.fill_(2 * kScale * top);
    }
    EXPECT_EQ(quantizer->activation().scale, 2 * kScale);
  }
  FakeQuantize dynamic(ActivationScheme{*parse_scheme("int8/r@f32"), true, 0, 0});
  const Status status = status_of([&] { dynamic->learn_clip(); });
  EXPECT_EQ(status.code(), StatusCode::failed_precondition);
  EXPECT_THAT(status.message(), HasSubstr("a static activation with a scale"));
}

TEST(FakeQuantize, DoReFaQuantizesTanhOfItsWeight) {
  const torch::Tensor w = random({6, 40}, 23);
  FakeQuantize quantizer(*parse_scheme("int4n/r@f32"), ScaleRule{});
  const torch::Tensor start = quantizer->squash(w);
  const double most = w.abs().max().item<double>();
  // t(start) is the weight itself.
  EXPECT_LT((quantizer->seen(start) - w).abs().max().item<double>(), 1e-5 * most);
  EXPECT_LE(start.abs().max().item<double>(), most);
  // Moved: eq. 9, [-1, 1] stretched to [-c, c].
  const torch::Tensor moved = (start * 0.7).clone().requires_grad_();
  const torch::Tensor tanh = at::tanh(moved.detach());
  const torch::Tensor expected = tanh * (most / tanh.abs().max());
  EXPECT_TRUE(at::allclose(quantizer->seen(moved.detach()), expected, 1e-6, 1e-7));
  // Straight through the rounding, then d tanh.
  const torch::Tensor toward = random({6, 40}, 24);
  const torch::Tensor y = quantizer->forward(moved);
  EXPECT_LE((y - expected).abs().max().item<double>(), 0.51 * most / 7);
  (y * toward).sum().backward();
  const torch::Tensor slope = (1 - tanh.square()) * (most / tanh.abs().max());
  // The largest of a row lies on the range's edge, where a last bit decides.
  const torch::Tensor inner = expected.abs() < 0.999 * expected.abs().amax(1, true);
  EXPECT_EQ(inner.logical_not().sum().item<int64_t>(), 6);
  EXPECT_TRUE(at::allclose(moved.grad() * inner, toward * slope * inner, 1e-5, 1e-6));
  // What ships is what was simulated.
  const CodedMatrix coded = quantizer->coded(moved.detach());
  torch::Tensor shipped = at::empty_like(w).contiguous();
  ASSERT_TRUE(dequantize(coded, {shipped.mutable_data_ptr<float>(), 6, 40}).ok());
  EXPECT_TRUE(at::equal(shipped, y.detach()));
  FakeQuantize activation(ActivationScheme{*parse_scheme("uint4/t@f32"), false, 0.1f, 0});
  EXPECT_EQ(status_of([&] { activation->squash(w); }).code(),
            StatusCode::invalid_argument);
}

// --- scales that stay usable, and errors

TEST(FakeQuantize, ALearnedScaleStaysPositive) {
  for (const char* text : {"int8/t@f32", "int4/g4@f16"}) {
    const QuantScheme scheme = *parse_scheme(text);
    const torch::Tensor x = random({2, 8}, 15);
    FakeQuantize quantizer(scheme, ScaleRule{});
    quantizer->set_levels(chosen(x, scheme));
    quantizer->learn_scale();
    {
      torch::NoGradGuard no_grad;
      quantizer->parameters()[0].fill_(-1.0f);
    }
    quantizer->keep_positive();
    const CodedMatrix coded = quantizer->coded(x);
    for (const float s : coded.scales[0].values) EXPECT_GT(s, 0.0f) << text;
  }
}

TEST(FakeQuantize, ErrorsNameWhatIsWrong) {
  Status status = status_of([] { FakeQuantize(*parse_scheme("bf16"), ScaleRule{}); });
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_THAT(status.message(),
              HasSubstr("a scheme with scales was required; found 'bf16'"));

  status = status_of([] {
    FakeQuantize(ActivationScheme{*parse_scheme("int8/r@f32"), false, 0.1f, 0});
  });
  EXPECT_THAT(status.message(), HasSubstr("found 'int8/r@f32'"));

  FakeQuantize uncalibrated(ActivationScheme{*parse_scheme("int8/t@f32"), false, 0, 0});
  status = status_of([&] { uncalibrated->forward(at::ones({2, 2})); });
  EXPECT_EQ(status.code(), StatusCode::failed_precondition);
  EXPECT_THAT(status.message(), HasSubstr("a calibrated scale was required"));
  EXPECT_EQ(status_of([&] { uncalibrated->learn_scale(); }).code(),
            StatusCode::failed_precondition);
  EXPECT_EQ(status_of([&] { uncalibrated->set_scale(0.0f); }).code(),
            StatusCode::out_of_range);
  EXPECT_EQ(status_of([&] { uncalibrated->set_scale(NAN); }).code(),
            StatusCode::out_of_range);

  FakeQuantize weight(*parse_scheme("int4/r@f32"), ScaleRule{});
  const torch::Tensor x = random({2, 8}, 16);
  status = status_of([&] { weight->set_levels(chosen(x, *parse_scheme("int8/r@f32"))); });
  EXPECT_THAT(status.message(),
              HasSubstr("levels of int4/r@f32 were required; found int8/r@f32"));
  weight->set_levels(chosen(x, *parse_scheme("int4/r@f32")));
  status = status_of([&] { weight->forward(random({3, 8}, 17)); });
  EXPECT_THAT(status.message(),
              HasSubstr("levels of a [2, 8] matrix were set; found [3, 8]"));

  const QuantScheme table = *parse_scheme("nf4/f64@dyn8+o/f256@f32");
  FakeQuantize shifted(table, ScaleRule{});
  const torch::Tensor big = random({4, 128}, 18);
  shifted->set_levels(chosen(big, table));
  EXPECT_EQ(status_of([&] { shifted->learn_scale(); }).code(), StatusCode::unsupported);
}

}  // namespace
}  // namespace nibble
