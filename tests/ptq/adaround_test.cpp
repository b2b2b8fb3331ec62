// AdaRound: its functions and gradients, what it gains over rounding to nearest, with and
// without a ReLU behind the layer, and that it gives the same codes at any thread count.
#include "ptq/methods/adaround.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "kernels/base/parallel.h"
#include "ptq/methods/method.h"
#include "tests/ptq/calibration_cases.h"

namespace nibble {
namespace {

using testing::decoder_plan;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using testing::sequences;

at::Tensor random(std::vector<int64_t> shape, uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::kFloat);
}

// Differences of a function against its slope, f64 and elementwise.
template <class Function, class Slope>
double slope_error(const at::Tensor& x, Function function, Slope slope) {
  constexpr double kStep = 1e-6;
  const at::Tensor difference = (function(x + kStep) - function(x - kStep)) / (2 * kStep);
  return (difference - slope(x)).abs().max().template item<double>();
}

TEST(RectifiedSigmoid, SlopesAreThoseOfFiniteDifferences) {
  // ln 11 is where h is clipped; no point lies on it.
  const at::Tensor v = at::linspace(-5, 5, 201, at::kDouble);
  EXPECT_LT(slope_error(v, rectified_sigmoid, rectified_sigmoid_slope), 1e-8);
  const at::Tensor h = at::linspace(0.013, 0.987, 98, at::kDouble);
  for (const double beta : {2.0, 3.5, 20.0}) {
    EXPECT_LT(
        slope_error(
            h, [&](const at::Tensor& x) { return rounding_regularizer(x, beta); },
            [&](const at::Tensor& x) { return rounding_regularizer_slope(x, beta); }),
        1e-6)
        << beta;
  }
}

TEST(RectifiedSigmoid, ReachesItsEndsAndInverts) {
  const at::Tensor ends = at::tensor({-3.0, -2.3, 0.0, 2.3, 3.0}, at::kDouble);
  const at::Tensor h = rectified_sigmoid(ends);
  EXPECT_EQ(h[0].item<double>(), 0);
  EXPECT_GT(h[1].item<double>(), 0);
  EXPECT_DOUBLE_EQ(h[2].item<double>(), 0.5);
  EXPECT_LT(h[3].item<double>(), 1);
  EXPECT_EQ(h[4].item<double>(), 1);
  const at::Tensor x = at::linspace(0, 1, 33, at::kDouble);
  EXPECT_LT(
      (rectified_sigmoid(inverse_rectified_sigmoid(x)) - x).abs().max().item<double>(),
      1e-12);
  // Both sides of the middle cost the same, the ends nothing.
  EXPECT_EQ(rounding_regularizer(x, 5)[0].item<double>(), 0);
  EXPECT_EQ(rounding_regularizer(x, 5)[32].item<double>(), 0);
  EXPECT_EQ(rounding_regularizer(x, 5)[16].item<double>(), 1);
}

// A layer on inputs whose columns go together a little, as those of patches do; its
// biases keep most outputs below 0.
struct Case {
  at::Tensor weight, bias, x, float_x;
  Hessian inputs;
  RowSample rows{2048};
  LayerProblem problem;

  explicit Case(const char* scheme, uint64_t seed = 1, double drift = 0)
      : weight(random({24, 40}, seed)),
        bias(random({24}, seed + 1) - 12),
        x(0.4 * at::mm(random({2048, 12}, seed + 2), random({12, 40}, seed + 3)) +
          random({2048, 40}, seed + 4)),
        float_x(x * (1 + drift) + drift * random({2048, 40}, seed + 5)),
        inputs(40) {
    inputs.accumulate(x, float_x);
    rows.add(x, float_x, 1);
    rows.shuffle();
    problem.node = "layer";
    problem.weight = {weight.data_ptr<float>(), 24, 40};
    problem.scheme = parse_scheme(scheme).value();
    problem.inputs = &inputs;
    problem.adaround.iterations = 600;
    problem.adaround.batch = 2048;
  }
  at::Tensor values(const SolvedLayer& solved) const {
    at::Tensor made = at::empty({24, 40});
    throw_if_error(dequantize(solved.coded, {made.data_ptr<float>(), 24, 40}));
    return made;
  }
  // Mean squared distance of the outputs from the float layer's on its inputs.
  double error(const SolvedLayer& solved, bool relu = false) const {
    at::Tensor y = at::mm(float_x, weight.t()) + bias;
    at::Tensor z = at::mm(x, values(solved).t()) + bias;
    if (relu) y = y.relu(), z = z.relu();
    return (y - z).square().mean().item<double>();
  }
};

TEST(AdaRound, LosesAboutAsMuchAsGptqAndFarLessThanNearest) {
  for (const char* scheme : {"int3/r@f32", "uint4/g8@f16+z/g8@uint4", "nf4/g8@f16"}) {
    double nearest = 0, learned = 0, solved = 0;
    for (const uint64_t seed : {1, 11}) {
      Case c(scheme, seed);
      c.problem.gptq.refine_scales = 0;  // AdaRound's stay too
      const SolvedLayer rounded = solve_adaround(c.problem);
      EXPECT_THAT(rounded.note, EndsWith(" % rounded away from nearest"));
      EXPECT_EQ(rounded.coded.scales, solve_rtn(c.problem).coded.scales) << scheme;
      nearest += c.error(solve_rtn(c.problem));
      learned += c.error(rounded);
      solved += c.error(solve_gptq(c.problem));
    }
    EXPECT_LT(learned, 0.75 * nearest) << scheme;
    EXPECT_LT(learned, 1.2 * solved) << scheme;
  }
}

TEST(AdaRound, EveryWeightTakesOneOfTheTwoValuesAroundIt) {
  Case c("int4/r@f32");
  const at::Tensor values = c.values(solve_adaround(c.problem));
  const CodedMatrix scales = solve_rtn(c.problem).coded;
  for (int64_t r = 0; r < 24; ++r) {
    const at::Tensor distance = (values[r] - c.weight[r]).abs();
    EXPECT_LT(distance.max().item<float>(), 1.0001f * scales.scales[0].values[r]) << r;
  }
  // Some of them the farther one.
  EXPECT_NE(solve_adaround(c.problem).coded.codes, scales.codes);
}

TEST(AdaRound, AReluThatIsSeenIsWorthMore) {
  double blind = 0, seeing = 0;
  for (const uint64_t seed : {1, 11}) {
    Case c("int3/r@f32", seed);
    blind += c.error(solve_adaround(c.problem), true);
    c.problem.rows = &c.rows;
    c.problem.bias = c.bias;
    const SolvedLayer solved = solve_adaround(c.problem);
    EXPECT_THAT(solved.note, EndsWith("from nearest, the ReLU seen"));
    seeing += c.error(solved, true);
  }
  EXPECT_LT(seeing, 0.95 * blind);
}

TEST(AdaRound, AimsAtTheFloatNetsOutputs) {
  for (const bool relu : {false, true}) {
    Case c("int3/r@f32", 3, 0.05);
    if (relu) c.problem.rows = &c.rows, c.problem.bias = c.bias;
    const double aimed = c.error(solve_adaround(c.problem), relu);
    c.problem.gptq.match_float = false;
    if (relu) c.rows = RowSample(2048), c.rows.add(c.x, {}, 1), c.rows.shuffle();
    EXPECT_LT(aimed, 0.97 * c.error(solve_adaround(c.problem), relu)) << relu;
  }
}

TEST(AdaRound, SameCodesAtOneAndTwoThreads) {
  const int before = thread_count();
  const auto model = std::make_shared<Artifact>(testing::small_llama(6));
  Plan plan = decoder_plan(model->program, "int4/g8@f16", "adaround");
  plan.adaround.iterations = 50;
  std::vector<Calibrated> results;
  for (const int threads : {1, 2}) {
    set_thread_count(threads);
    results.push_back(calibrate(model, plan, sequences(40, 24, 7), {}));
  }
  set_thread_count(before);
  EXPECT_EQ(results[0].weights, results[1].weights);
  const auto& account = results[0].accounts.at("model.layers.0.mlp.up_proj.weight");
  EXPECT_THAT(account.note, HasSubstr("away from nearest"));
  EXPECT_LT(account.output_error, account.error);
}

TEST(AdaRound, NeedsInputsThatAreFinite) {
  const auto failure = [](const LayerProblem& problem) -> std::string {
    try {
      solve_adaround(problem);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted it";
  };
  Case c("int4/r@f32");
  Hessian none(40);
  c.problem.inputs = &none;
  EXPECT_EQ(failure(c.problem),
            "[adaround] layer: needs calibration inputs; found none; give --calibration");
  none.accumulate(at::full({4, 40}, std::nanf("")));
  EXPECT_EQ(failure(c.problem),
            "[adaround] layer: inputs must be finite; found NaN or infinity; check the "
            "weights before this layer and the calibration data");
}

TEST(RowSample, TakesTheSameRowsOfBothNetsOnceEach) {
  const at::Tensor x = at::arange(300, at::kFloat).view({100, 3});
  RowSample sample(40);
  sample.add(x.narrow(0, 0, 60), -x.narrow(0, 0, 60), 0.5);
  sample.add(x.narrow(0, 60, 40), -x.narrow(0, 60, 40), 0.5);
  sample.shuffle();
  ASSERT_EQ(sample.inputs().size(0), 40);
  EXPECT_TRUE(at::equal(sample.float_inputs(), -sample.inputs()));
  std::set<float> seen;
  int first_half = 0;
  for (int64_t r = 0; r < 40; ++r) {
    const float id = sample.inputs()[r][0].item<float>();
    seen.insert(id);
    first_half += id < 180 && r < 20;
  }
  EXPECT_EQ(seen.size(), 40u);
  EXPECT_GT(first_half, 2);  // shuffled: not the first call's rows first
  EXPECT_LT(first_half, 18);
}

}  // namespace
}  // namespace nibble
