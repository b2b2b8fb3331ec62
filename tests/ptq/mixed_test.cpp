// Mixed precision: the knapsack against trying everything, and losses that are foretold
// against losses that come true.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/base/splitmix64.h"
#include "ptq/allocate.h"
#include "ptq/calibration/sensitivity.h"
#include "tests/ptq/calibration_cases.h"

namespace nibble {
namespace {

using testing::decoder_plan;
using ::testing::HasSubstr;
using testing::sequences;

double least_loss(const std::vector<std::vector<LayerChoice>>& layers, size_t at,
                  double budget) {
  if (at == layers.size()) return 0;
  double best = std::numeric_limits<double>::infinity();
  for (const LayerChoice& choice : layers[at]) {
    if (choice.cost > budget) continue;
    best = std::min(best, choice.loss + least_loss(layers, at + 1, budget - choice.cost));
  }
  return best;
}

TEST(Allocate, FindsTheLeastLossOfAll) {
  SplitMix64 random(3);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::vector<LayerChoice>> layers(6);
    for (auto& choices : layers) {
      for (int c = 0; c < 4; ++c) {
        choices.push_back({1.0 + static_cast<double>(random.below(20)),
                           static_cast<double>(random.below(1000)) / 64});
      }
    }
    const double budget = 40 + static_cast<double>(random.below(60));
    const double best = least_loss(layers, 0, budget);
    const Result<std::vector<size_t>> chosen = allocate(layers, budget);
    if (std::isinf(best)) {
      EXPECT_FALSE(chosen.ok());
      continue;
    }
    ASSERT_TRUE(chosen.ok()) << chosen.status().message();
    double cost = 0, loss = 0;
    for (size_t l = 0; l < layers.size(); ++l) {
      cost += layers[l][(*chosen)[l]].cost;
      loss += layers[l][(*chosen)[l]].loss;
    }
    EXPECT_LE(cost, budget);
    EXPECT_EQ(loss, best);
  }
}

TEST(Allocate, ManyDifferentSumsStayNearTheBest) {
  SplitMix64 random(4);
  std::vector<std::vector<LayerChoice>> layers(60);
  double convex = 0;  // the sum when every layer takes its middle choice
  for (auto& choices : layers) {
    const double size = 1 + random.uniform();
    for (const double bits : {2.0, 3.0, 4.0})
      choices.push_back({size * bits, size * random.uniform() * std::pow(4, -bits)});
    std::sort(choices.begin(), choices.end(),
              [](const auto& a, const auto& b) { return a.cost < b.cost; });
    convex += choices[1].loss;
  }
  double budget = 0;
  for (const auto& choices : layers) budget += choices[1].cost;
  const Result<std::vector<size_t>> chosen = allocate(layers, budget);
  ASSERT_TRUE(chosen.ok());
  double cost = 0, loss = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    cost += layers[l][(*chosen)[l]].cost;
    loss += layers[l][(*chosen)[l]].loss;
  }
  EXPECT_LE(cost, budget * (1 + 1e-9));
  EXPECT_LT(loss, 0.8 * convex);
}

TEST(Allocate, SaysWhatTheLeastIs) {
  const Result<std::vector<size_t>> chosen = allocate({{{3, 1}, {2, 5}}, {{4, 0}}}, 5);
  EXPECT_EQ(chosen.status().code(), StatusCode::failed_precondition);
  EXPECT_EQ(
      chosen.status().message(),
      "[allocate] budget: the cheapest choices take 6; found a budget of 5; raise it "
      "or give cheaper choices");
}

// Mean KL(float || model with some weights replaced) per token.
double measured_kl(const Artifact& model,
                   const std::map<std::string, CodedMatrix>& weights,
                   const CalibrationData& data) {
  const at::NoGradGuard no_gradients;
  ProgramModule before(model), after(model);
  before->eval();
  after->eval();
  for (const auto& [tensor, coded] : weights) {
    at::Tensor values = at::empty({coded.rows, coded.cols});
    throw_if_error(dequantize(coded, {values.data_ptr<float>(), coded.rows, coded.cols}));
    after->set_parameter(tensor, values);
  }
  double sum = 0, count = 0;
  for (const std::vector<int32_t>& ids : data.sequences) {
    const at::Tensor input = at::tensor(ids).to(at::kLong).unsqueeze(0);
    const at::Tensor p = at::log_softmax(before->forward(input).to(at::kDouble), -1);
    const at::Tensor q = at::log_softmax(after->forward(input).to(at::kDouble), -1);
    sum += (p.exp() * (p - q)).sum().item<double>();
    count += static_cast<double>(ids.size());
  }
  return sum / count;
}

TEST(PredictedLosses, AreWhatRoundingThatLayerCosts) {
  const Artifact model = testing::small_llama(1);
  Plan plan = decoder_plan(model.program, "int4/g8@f16", "rtn");
  const CalibrationData data = sequences(40, 24, 2);
  std::vector<std::string> tensors;
  for (const LayerPlan& layer : plan.layers) tensors.push_back(layer.tensor);
  const std::vector<QuantScheme> schemes = {parse_scheme("int3/g8@f16").value(),
                                            parse_scheme("int5/g8@f16").value()};
  const ModelWeights weights(model);
  const StreamOptions options;
  FoundScales found;
  const auto losses =
      predicted_losses({model, weights, plan, data, options, found}, tensors, schemes);
  ASSERT_EQ(losses.size(), 15u);
  double log_error = 0;
  std::vector<std::pair<double, double>> pairs;
  for (const std::string& tensor : tensors) {
    const std::vector<double>& foretold = losses.at(tensor);
    EXPECT_GT(foretold[0], 4 * foretold[1]) << tensor;  // two bits: about 16 times
    const Tensor& values = model.tensors.at(tensor);
    const std::vector<float> weight = value_or_throw(to_float(values));
    const MatrixView<const float> view(weight.data(), values.rows(), values.cols());
    CodedMatrix coded =
        value_or_throw(choose_scales(view, schemes[0], {.kind = ScaleRule::Kind::mse}));
    throw_if_error(quantize(view, coded));
    const double real = measured_kl(model, {{tensor, coded}}, data);
    pairs.push_back({foretold[0], real});
    log_error += std::abs(std::log(foretold[0] / real));
  }
  // Within a factor of two on average, though layers differ by far more.
  EXPECT_LT(log_error / static_cast<double>(pairs.size()), std::log(2.0));
  std::sort(pairs.begin(), pairs.end());
  EXPECT_GT(pairs.back().second, 3 * pairs.front().second);
}

TEST(Mixed, StaysWithinTheBudgetAndBeatsOneSchemeForAll) {
  double mixed_kl = 0, uniform_kl = 0;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const auto model = std::make_shared<Artifact>(testing::small_llama(seed));
    const CalibrationData data = sequences(40, 24, 2), others = sequences(20, 24, 3);
    Plan plan = decoder_plan(model->program, "int4/g8@f16", "gptq");
    uniform_kl += measured_kl(*model, calibrate(model, plan, data, {}).weights, others);
    for (const char* text : {"int3/g8@f16", "int4/g8@f16", "int5/g8@f16", "int6/g8@f16"})
      plan.mixed.schemes.push_back(parse_scheme(text).value());
    plan.mixed.unit = "bits";
    const auto bits_of = [&](const std::string& tensor, const QuantScheme& scheme) {
      const Tensor& values = model->tensors.at(tensor);
      return bits_per_value(scheme, values.rows(), values.cols()) *
             static_cast<double>(values.numel());
    };
    for (const LayerPlan& layer : plan.layers) {
      if (layer.method == "float") continue;
      for (const QuantScheme& scheme : plan.mixed.schemes)
        plan.mixed.costs[layer.tensor].push_back(bits_of(layer.tensor, scheme));
      plan.mixed.budget += bits_of(layer.tensor, layer.scheme.weight);
    }
    const Calibrated mixed = calibrate(model, plan, data, {});
    double bits = 0;
    std::set<std::string> used;
    for (const auto& [tensor, coded] : mixed.weights) {
      bits += bits_of(tensor, coded.scheme);
      used.insert(to_string(coded.scheme));
    }
    EXPECT_LE(bits, plan.mixed.budget);
    EXPECT_GT(used.size(), 1u);
    mixed_kl += measured_kl(*model, mixed.weights, others);
    EXPECT_THAT(mixed.accounts.begin()->second.note, HasSubstr("mixed: KL foretold "));
  }
  EXPECT_LT(mixed_kl, uniform_kl);
}

}  // namespace
}  // namespace nibble
