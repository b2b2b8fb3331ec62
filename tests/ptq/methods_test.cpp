// The methods and transforms that look at more than one weight at a time, or at no data:
// AWQ, SmoothQuant, HQQ, importance-weighted rounding, AutoRound.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/base/parallel.h"
#include "ptq/methods/method.h"
#include "tests/ptq/calibration_cases.h"

namespace nibble {
namespace {

using testing::decoder_plan;
using testing::distance;
using ::testing::HasSubstr;
using testing::sequences;
using ::testing::StartsWith;

// A decoder whose norms let a few channels through much louder than others.
std::shared_ptr<const Artifact> with_outliers(uint64_t seed) {
  auto model = std::make_shared<Artifact>(testing::small_llama(seed));
  for (auto& [name, tensor] : model->tensors) {
    if (name.find("layernorm") == std::string::npos) continue;
    std::vector<float> values = value_or_throw(to_float(tensor));
    values[3] *= 20;
    values[11] *= 12;
    tensor = make_tensor(tensor.shape, values);
  }
  return model;
}

std::string failure_of(std::shared_ptr<const Artifact> model, const Plan& plan,
                       const CalibrationData& data) {
  try {
    calibrate(std::move(model), plan, data, {});
  } catch (const Error& error) {
    return error.what();
  }
  return "calibrate accepted it";
}

double mean_distance(const char* scheme, const char* method, const char* transform) {
  double sum = 0;
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    const auto model = with_outliers(seed);
    Plan plan = decoder_plan(model->program, scheme, method);
    if (*transform != '\0') plan.transforms = {transform};
    sum += distance(*model, calibrate(model, plan, sequences(40, 24, 2), {}),
                    sequences(20, 24, 3));
  }
  return sum;
}

TEST(Awq, ScalingKeepsTheFloatModelsFunction) {
  const auto model = with_outliers(1);
  Plan plan = decoder_plan(model->program, "uint4/g8@f16+z/g8@uint4", "awq");
  plan.transforms = {"awq"};
  Calibrated result = calibrate(model, plan, sequences(40, 24, 2), {});
  EXPECT_THAT(result.accounts.at("model.layers.0.self_attn.q_proj.weight").note,
              StartsWith("awq: alpha "));
  EXPECT_THAT(result.accounts.at("model.layers.0.input_layernorm.weight").note,
              HasSubstr("divided by the factors of"));
  result.weights.clear();
  EXPECT_LT(distance(*model, result, sequences(4, 24, 3)), 1e-8);
  EXPECT_NE(value_or_throw(to_float(
                result.model->tensors.at("model.layers.0.input_layernorm.weight"))),
            value_or_throw(
                to_float(model->tensors.at("model.layers.0.input_layernorm.weight"))));
}

TEST(Awq, EachHalfComesNearerToTheFloatModel) {
  const char* scheme = "uint4/g8@f16+z/g8@uint4";
  const double rtn = mean_distance(scheme, "rtn", "");
  const double clipped = mean_distance(scheme, "awq", "");
  const double both = mean_distance(scheme, "awq", "awq");
  EXPECT_LT(clipped, rtn);
  EXPECT_LT(both, 0.8 * rtn);
  EXPECT_GT(both, 0.02 * rtn);
}

// Scales of both signs, through every method that chooses scales.
TEST(FullRange, LosesLessUnderEveryMethod) {
  for (const char* method : {"rtn", "gptq", "imatrix", "autoround"}) {
    double sum[2] = {0, 0};
    for (const bool full : {false, true}) {
      for (uint64_t seed = 1; seed <= 2; ++seed) {
        const auto model = with_outliers(seed);
        Plan plan = decoder_plan(model->program, "int2/g8@f16", method);
        plan.autoround.iterations = 40;
        for (LayerPlan& layer : plan.layers) {
          layer.rule.kind = ScaleRule::Kind::mse;
          layer.rule.full_range = full;
        }
        const Calibrated result = calibrate(model, plan, sequences(40, 24, 2), {});
        const std::vector<float>& scales =
            result.weights.at("model.layers.0.mlp.up_proj.weight").scales[0].values;
        EXPECT_EQ(
            std::any_of(scales.begin(), scales.end(), [](float s) { return s < 0; }),
            full)
            << method;
        sum[full] += distance(*model, result, sequences(20, 24, 3));
      }
    }
    EXPECT_LT(sum[1], 0.9 * sum[0]) << method;
  }
}

TEST(Imatrix, ComesNearerThanPlainRounding) {
  const double rtn = mean_distance("int3/g8@f16", "rtn", "");
  const double weighted = mean_distance("int3/g8@f16", "imatrix", "");
  EXPECT_LT(weighted, rtn);
  EXPECT_GT(weighted, 0.05 * rtn);
}

TEST(SmoothQuant, MovesOutliersIntoTheWeights) {
  const auto model = with_outliers(2);
  Plan plan = decoder_plan(model->program, "int8n/r@f32", "rtn");
  for (LayerPlan& layer : plan.layers) {
    if (layer.method == "float") continue;
    layer.scheme.input =
        ActivationScheme{.scheme = parse_scheme("int8n/r@f32").value(), .dynamic = true};
  }
  plan.transforms = {"smoothquant"};
  Calibrated result = calibrate(model, plan, sequences(40, 24, 2), {});
  EXPECT_THAT(result.accounts.at("model.layers.1.mlp.gate_proj.weight").note,
              StartsWith("smoothquant: alpha "));
  // Loud channels of the norm grow quieter against the others.
  const auto loudness = [](const Artifact& of) {
    const std::vector<float> norm =
        value_or_throw(to_float(of.tensors.at("model.layers.0.input_layernorm.weight")));
    return std::abs(norm[3]) / std::abs(norm[5]);
  };
  EXPECT_LT(loudness(*result.model), 0.8 * loudness(*model));
  result.weights.clear();
  EXPECT_LT(distance(*model, result, sequences(4, 24, 3)), 1e-8);

  plan.smoothquant_alpha = 0.5;
  EXPECT_THAT(calibrate(model, plan, sequences(40, 24, 2), {})
                  .accounts.at("model.layers.1.mlp.gate_proj.weight")
                  .note,
              StartsWith("smoothquant: alpha 0.5, "));
}

TEST(SmoothQuant, NeedsLayersWithQuantizedInputs) {
  const auto model = with_outliers(2);
  Plan plan = decoder_plan(model->program, "int8n/r@f32", "rtn");
  plan.transforms = {"smoothquant"};
  EXPECT_THAT(failure_of(model, plan, sequences(40, 24, 2)),
              StartsWith("[smoothquant] a layer whose inputs are quantized"));
  EXPECT_EQ(failure_of(model, plan, {}),
            "[calibrate] transform smoothquant needs calibration data; found none; give "
            "--calibration");
  plan.transforms = {"awq", "smoothquant", "awq"};
  EXPECT_EQ(failure_of(model, plan, {}),
            "[plan] transforms: each at most once is required; found one twice");
  plan.transforms = {"smoothquan"};
  EXPECT_EQ(failure_of(model, plan, {}),
            "[plan] transforms: no transform is called `smoothquan`; there are awq, equalize, "
            "smoothquant");
}

// Many small weights and a few large ones: what HQQ is for.
struct HeavyTails {
  at::Tensor weight;
  LayerProblem problem;
  explicit HeavyTails(const char* scheme)
      : weight(
            at::randn({16, 128}, at::detail::createCPUGenerator(7), at::kFloat).pow(3)) {
    problem.node = "layer";
    problem.weight = {weight.data_ptr<float>(), 16, 128};
    problem.scheme = parse_scheme(scheme).value();
  }
  // sum |W - Q|^0.7, the norm that HQQ minimises.
  double norm(const SolvedLayer& solved) const {
    at::Tensor values = at::empty({16, 128});
    throw_if_error(dequantize(solved.coded, {values.data_ptr<float>(), 16, 128}));
    return (weight - values).abs().pow(0.7).sum().item<double>();
  }
};

TEST(Hqq, MakesErrorsSparser) {
  for (const char* scheme :
       {"uint4/g32@f16+m/g32@f16", "uint3/g32@f16+m/g32@f16", "uint4/r@f32+m/r@f32"}) {
    const HeavyTails heavy(scheme);
    const SolvedLayer rtn = solve_rtn(heavy.problem), hqq = solve_hqq(heavy.problem);
    EXPECT_NE(hqq.coded.scales, rtn.coded.scales) << scheme;  // fitted too
    EXPECT_NE(hqq.coded.offsets, rtn.coded.offsets) << scheme;
    EXPECT_LT(heavy.norm(hqq), 0.95 * heavy.norm(rtn)) << scheme;
  }
}

TEST(Hqq, NeedsARealOffset) {
  const HeavyTails heavy("uint4/g32@f16+z/g32@uint4");
  try {
    solve_hqq(heavy.problem);
    FAIL() << "accepted it";
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::invalid_argument);
    EXPECT_THAT(error.what(), StartsWith("[hqq] layer: integer codes with one scale"));
    EXPECT_THAT(error.what(), HasSubstr("found uint4/g32@f16+z/g32@uint4"));
  }
}

Plan autoround_plan(const Program& program, const char* scheme, const char* start) {
  Plan plan = decoder_plan(program, scheme, "autoround");
  plan.autoround.iterations = 40;
  plan.autoround.start = start;
  return plan;
}

TEST(AutoRound, ComesNearerThanItsStart) {
  const CalibrationData data = sequences(40, 24, 2), others = sequences(20, 24, 3);
  for (const char* scheme : {"uint2/g8@f16+z/g8@uint2"}) {
    double start = 0, tuned = 0, from_rtn = 0, rtn = 0;
    for (uint64_t seed = 1; seed <= 2; ++seed) {
      const auto model = std::make_shared<Artifact>(testing::small_llama(seed));
      const auto solved = [&](const Plan& plan) {
        return distance(*model, calibrate(model, plan, data, {}), others);
      };
      start += solved(decoder_plan(model->program, scheme, "gptq"));
      tuned += solved(autoround_plan(model->program, scheme, "gptq"));
      rtn += solved(decoder_plan(model->program, scheme, "rtn"));
      from_rtn += solved(autoround_plan(model->program, scheme, "rtn"));
    }
    EXPECT_LT(tuned, start) << scheme;
    EXPECT_LT(from_rtn, 0.8 * rtn) << scheme;
    EXPECT_GT(from_rtn, 0.02 * rtn) << scheme;
  }
}

TEST(AutoRound, SameCodesAtOneAndTwoThreads) {
  const int before = thread_count();
  const auto model = std::make_shared<Artifact>(testing::small_llama(6));
  const Plan plan = autoround_plan(model->program, "int4/g8@f16", "gptq");
  std::vector<Calibrated> results;
  for (const int threads : {1, 2}) {
    set_thread_count(threads);
    results.push_back(calibrate(model, plan, sequences(40, 24, 7), {}));
  }
  set_thread_count(before);
  EXPECT_EQ(results[0].weights, results[1].weights);
  EXPECT_THAT(results[0].accounts.begin()->second.note, HasSubstr("block error "));
}

TEST(AutoRound, TunesIntegerCodesOnly) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(1));
  EXPECT_EQ(
      failure_of(model, autoround_plan(model->program, "nf4/g8@f16", "gptq"),
                 sequences(40, 24, 2)),
      "[autoround] model.layers.0.self_attn.q_proj: integer codes under one float "
      "scale a group, row or tensor are required; found nf4/g8@f16: its codes are not "
      "integers; use gptq for this layer");
}

}  // namespace
}  // namespace nibble
