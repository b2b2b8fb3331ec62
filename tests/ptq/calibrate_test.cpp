#include "ptq/calibrate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/base/parallel.h"
#include "kernels/packing/packed_tensor.h"
#include "ptq/error.h"
#include "ptq/module/exact_module.h"
#include "tests/ptq/calibration_cases.h"
#include "tests/ptq/small_models.h"

namespace nibble {
namespace {

using testing::decoder_plan;
using testing::distance;
using ::testing::HasSubstr;
using testing::sequences;
using ::testing::StartsWith;

CalibrationData images(int64_t count, uint64_t seed) {
  CalibrationData data;
  data.images = from_torch(
      at::randn({count, 3, 8, 8}, at::detail::createCPUGenerator(seed), at::kFloat));
  return data;
}

std::string failure_of(const Artifact& model, const Plan& plan,
                       const CalibrationData& data, StatusCode code) {
  try {
    calibrate(std::make_shared<Artifact>(model), plan, data, {});
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), code);
    return error.what();
  }
  return "calibrate accepted it";
}

double total_output_error(const Calibrated& calibrated) {
  double total = 0;
  for (const auto& [tensor, account] : calibrated.accounts) total += account.output_error;
  return total;
}

TEST(Calibrate, SolvesEveryPlannedLayer) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(1));
  const Plan plan = decoder_plan(model->program, "int4/g8@f16", "gptq");
  std::vector<std::string> order;
  const Calibrated result = calibrate(
      model, plan, sequences(40, 24, 2),
      [&](const std::string&, const std::string& what, int64_t done, int64_t total) {
        EXPECT_EQ(total, 14);
        EXPECT_EQ(done, static_cast<int64_t>(order.size()) + 1);
        order.push_back(what);
      });
  EXPECT_EQ(result.weights.size(), 14u);
  ASSERT_EQ(order.size(), 14u);
  EXPECT_EQ(order[0], "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(order[13], "model.layers.1.mlp.down_proj");
  int64_t tokens = 0;
  for (const auto& ids : sequences(40, 24, 2).sequences)
    tokens += static_cast<int64_t>(ids.size());
  for (const auto& [tensor, account] : result.accounts) {
    EXPECT_EQ(account.tokens, tokens) << tensor;
    EXPECT_GT(account.error, 1e-4) << tensor;
    EXPECT_LT(account.error, 0.1) << tensor;
    EXPECT_GT(account.output_error, 1e-5) << tensor;
    EXPECT_LT(account.output_error, account.error) << tensor;  // what GPTQ is for
  }
  EXPECT_EQ(result.calibration, "random ids");
}

TEST(Calibrate, GptqComesNearerToTheFloatModelThanRtn) {
  const CalibrationData data = sequences(40, 24, 2), others = sequences(20, 24, 3);
  double gptq = 0, rtn = 0;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const auto model = std::make_shared<Artifact>(testing::small_llama(seed));
    gptq += distance(
        *model,
        calibrate(model, decoder_plan(model->program, "int4/g8@f16", "gptq"), data, {}),
        others);
    rtn += distance(
        *model,
        calibrate(model, decoder_plan(model->program, "int4/g8@f16", "rtn"), {}, {}),
        others);
  }
  EXPECT_LT(gptq, 0.9 * rtn);
  EXPECT_GT(gptq, 0.05 * rtn);
}

TEST(Calibrate, ThePrefixIsQuantizedOnlyWhenAsked) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(4));
  Plan plan = decoder_plan(model->program, "int3/g8@f16", "gptq");
  plan.gptq.match_float = false;
  const CalibrationData data = sequences(40, 24, 5);
  const Calibrated quantized = calibrate(model, plan, data, {});
  plan.gptq.quantized_prefix = false;
  const Calibrated plain = calibrate(model, plan, data, {});
  // Nothing is before the first layer; something is before the last.
  const char* first = "model.layers.0.self_attn.q_proj.weight";
  const char* last = "model.layers.1.mlp.down_proj.weight";
  EXPECT_EQ(quantized.weights.at(first), plain.weights.at(first));
  EXPECT_NE(quantized.weights.at(last), plain.weights.at(last));
}

TEST(Calibrate, SameCodesAtOneAndTwoThreads) {
  const int before = thread_count();
  const auto model = std::make_shared<Artifact>(testing::small_llama(6));
  Plan plan = decoder_plan(model->program, "int4/g8@f16", "gptq");
  for (LayerPlan& layer : plan.layers) layer.rule.kind = ScaleRule::Kind::mse;
  std::vector<Calibrated> results;
  for (const int threads : {1, 2}) {
    set_thread_count(threads);
    results.push_back(calibrate(model, plan, sequences(40, 24, 7), {}));
  }
  set_thread_count(before);
  EXPECT_EQ(results[0].weights, results[1].weights);
  EXPECT_EQ(total_output_error(results[0]), total_output_error(results[1]));
}

TEST(Calibrate, SaysWhatIsWrongWithTheData) {
  const Artifact model = testing::small_llama(1);
  const Plan plan = decoder_plan(model.program, "int4/g8@f16", "gptq");
  EXPECT_EQ(
      failure_of(model, plan, {}, StatusCode::failed_precondition),
      "[calibrate] model.layers.0.self_attn.q_proj: method gptq needs calibration data; "
      "found none; give --calibration");
  EXPECT_EQ(
      failure_of(model, plan, sequences(39, 24, 1), StatusCode::failed_precondition),
      "[calibrate] data: 40 sequences are planned; found 39; give more or set "
      "calibration_sequences=39");
  CalibrationData longer = sequences(40, 24, 1);
  longer.sequences[3].resize(25);
  EXPECT_EQ(failure_of(model, plan, longer, StatusCode::invalid_argument),
            "[calibrate] data: sequence 3 must have 1 to 24 ids; found 25");
  CalibrationData foreign = sequences(40, 24, 1);
  foreign.sequences[2][0] = 23;
  EXPECT_EQ(
      failure_of(model, plan, foreign, StatusCode::out_of_range),
      "[calibrate] data: sequence 2 must have ids below 23; found 23; is it another "
      "tokenizer's?");
}

TEST(Calibrate, RefusesWhatIsQuantizedAlready) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(1));
  const Plan plan = decoder_plan(model->program, "int4/g8@f16", "rtn");
  const Artifact frozen = freeze(calibrate(model, plan, {}, {}), {});
  EXPECT_EQ(
      failure_of(frozen, plan, {}, StatusCode::failed_precondition),
      "[calibrate] model.layers.0.self_attn.q_proj: a float weight is required; found it "
      "quantized already; start from the float checkpoint");
}

// --- static activations

struct CnnCase {
  std::shared_ptr<Artifact> model;
  Plan plan;
};

CnnCase cnn_case(uint64_t seed = 1) {
  CnnCase c;
  c.model = std::make_shared<Artifact>(
      prepare_for_plan(testing::small_cnn(seed), true).value());
  c.plan.calibration_sequences = 40;
  c.plan.activations =
      integer_activations(c.model->program, parse_scheme(kSignedActivation).value(),
                          parse_scheme(kUnsignedActivation).value())
          .value();
  for (const Node& node : c.model->program.nodes) {
    if (!find_op(node.op)->is_layer) continue;
    LayerPlan layer;
    layer.node = node.name;
    layer.tensor = node.parameter("weight");
    layer.scheme.weight = parse_scheme("int8n/r@f32").value();
    layer.method = "rtn";
    c.plan.layers.push_back(layer);
  }
  return c;
}

TEST(CalibrateActivations, MinmaxScalesAreTheLargestMagnitudeOfTheFloatModel) {
  CnnCase c = cnn_case();
  LayerPlan& second = c.plan.layers[1];  // its input is requantized to 4 bits
  second.scheme.input = ActivationScheme{.scheme = parse_scheme("uint4/t@f32").value()};
  const CalibrationData data = images(40, 3);
  const Calibrated result = calibrate(c.model, c.plan, data, {});

  std::map<std::string, float> largest = {
      {"image", to_torch(data.images).abs().max().item<float>()}};
  ProgramModule module(*c.model);
  module->eval();
  module->set_tap(
      [&](const Node& node, const std::vector<at::Tensor>&, const at::Tensor& y) {
        largest[node.outputs[0]] = y.abs().max().item<float>();
      });
  const at::NoGradGuard no_gradients;
  module->forward(to_torch(data.images));

  ASSERT_EQ(result.activations.size(), c.plan.activations.size());
  for (const auto& [value, activation] : result.activations) {
    const bool is_signed = code_lowest(activation.scheme) < 0;
    const float exact = largest.at(value) / (is_signed ? 127.0f : 255.0f);
    if (value == "layer1.0.shortcut") continue;
    EXPECT_LE(activation.scale, exact * 1.00001f) << value;
    // -128 may hold the largest magnitude.
    EXPECT_GE(activation.scale, exact * (is_signed ? 0.992f : 0.99999f)) << value;
  }
  // Codes pass through the shortcut as they are.
  EXPECT_EQ(result.activations.at("layer1.0.shortcut"), result.activations.at("relu1"));
  EXPECT_EQ(result.plan.activations, result.activations);
  const ActivationScheme& input = result.layer_inputs.at(second.node);
  EXPECT_NEAR(input.scale, largest.at("relu1") / 15, 1e-5);
}

TEST(CalibrateActivations, TheMseObserverCutsTheRange) {
  CnnCase c = cnn_case();
  const Calibrated minmax = calibrate(c.model, c.plan, images(40, 3), {});
  c.plan.observer = "mse";
  const Calibrated mse = calibrate(c.model, c.plan, images(40, 3), {});
  int cut = 0;
  for (const auto& [value, activation] : mse.activations) {
    EXPECT_LE(activation.scale, minmax.activations.at(value).scale) << value;
    EXPECT_GT(activation.scale, 0.2f * minmax.activations.at(value).scale) << value;
    cut += activation.scale < minmax.activations.at(value).scale;
  }
  EXPECT_GT(cut, 0);
}

// --- bias correction

TEST(CorrectBiases, TheMeanOfEveryLogitIsTheFloatNetsOnTheImagesThatItSaw) {
  CnnCase c = cnn_case();
  for (LayerPlan& layer : c.plan.layers) {
    layer.scheme.weight = parse_scheme("int3/r@f32").value();
  }
  c.plan.layers[1].scheme.input =
      ActivationScheme{.scheme = parse_scheme("uint4/t@f32").value()};
  const CalibrationData data = images(40, 3);
  const Calibrated plain = calibrate(c.model, c.plan, data, {});
  c.plan.bias_correction = 24;
  const Calibrated corrected = calibrate(c.model, c.plan, data, {});

  const at::NoGradGuard no_gradients;
  const at::Tensor seen = to_torch(data.images).narrow(0, 0, 24);
  ProgramModule module(*c.model);
  module->eval();
  const at::Tensor mean = module->forward(seen).mean(0);
  const auto distance = [&](const Calibrated& calibrated) {
    return run_exact(freeze(calibrated, {}), seen, {}).mean(0).sub(mean).abs().max()
        .item<float>();
  };
  // A bias is an integer of its layer's scales: half of that remains.
  EXPECT_LT(distance(corrected), 0.002f);
  EXPECT_GT(distance(plain), 0.02f);
}

TEST(CorrectBiases, MovesBiasesAloneAndTheLedgerSaysSo) {
  CnnCase c = cnn_case();
  const Calibrated plain = calibrate(c.model, c.plan, images(40, 3), {});
  c.plan.bias_correction = 8;
  const Artifact frozen = freeze(calibrate(c.model, c.plan, images(40, 3), {}), {});
  const Artifact before = freeze(plain, {});
  for (const auto& [name, packed] : before.packed) {
    EXPECT_EQ(unpack(frozen.packed.at(name))->codes, unpack(packed)->codes) << name;
  }
  int moved = 0;
  for (const LedgerEntry& entry : frozen.ledger.entries) {
    const bool noted =
        entry.note == "corrected by its layer's mean error over 8 images";
    if (frozen.tensors.count(entry.tensor) == 0 || entry.method == "folded") continue;
    EXPECT_EQ(noted, *to_float(frozen.tensors.at(entry.tensor)) !=
                         *to_float(before.tensors.at(entry.tensor)))
        << entry.tensor;
    moved += noted;
  }
  EXPECT_EQ(moved, static_cast<int>(c.plan.layers.size()));
}

TEST(CorrectBiases, IsForStaticActivations) {
  CnnCase c = cnn_case();
  c.plan.activations.clear();
  c.plan.bias_correction = 8;
  EXPECT_EQ(failure_of(*c.model, c.plan, images(40, 3), StatusCode::invalid_argument),
            "[plan] bias_correction: static activations are required, as w8a8-static has; "
            "found none; leave it out");
}

// --- re-estimated batch norms

// Mean and standard deviation of each channel of the convolutions' outputs, the float
// net's where there are no codes.
std::map<std::string, std::pair<at::Tensor, at::Tensor>> channels_of(
    const Calibrated& calibrated, bool quantized, const at::Tensor& images) {
  ProgramModule module(*calibrated.model);
  module->eval();
  if (quantized) {
    for (const auto& [tensor, coded] : calibrated.weights) {
      at::Tensor values = at::empty({coded.rows, coded.cols});
      throw_if_error(
          dequantize(coded, {values.data_ptr<float>(), coded.rows, coded.cols}));
      module->set_parameter(tensor,
                            values.view(calibrated.model->tensors.at(tensor).shape));
    }
  }
  std::map<std::string, std::pair<at::Tensor, at::Tensor>> found;
  module->set_tap(
      [&](const Node& node, const std::vector<at::Tensor>&, const at::Tensor& y) {
        if (node.op == "conv2d") found[node.name] = {y.mean({0, 2, 3}), y.std({0, 2, 3})};
      });
  const at::NoGradGuard no_gradients;
  module->forward(images);
  return found;
}

TEST(ReestimateBatchNorms, EveryChannelHasTheFloatNetsMeanAndVariance) {
  CnnCase c = cnn_case();
  for (LayerPlan& layer : c.plan.layers) {
    layer.scheme.weight = parse_scheme("int2/r@f32").value();
  }
  const CalibrationData data = images(40, 3);
  const Calibrated plain = calibrate(c.model, c.plan, data, {});
  c.plan.batch_norm_reestimation = 24;
  const Calibrated fitted = calibrate(c.model, c.plan, data, {});
  const at::Tensor seen = to_torch(data.images).narrow(0, 0, 24);
  const auto in_float = channels_of(plain, false, seen);
  const auto distance = [&](const Calibrated& calibrated) {
    double largest = 0;
    for (const auto& [name, found] : channels_of(calibrated, true, seen)) {
      const auto& [mean, deviation] = in_float.at(name);
      largest = std::max(largest, ((found.first - mean).abs() / deviation)
                                      .maximum((found.second / deviation - 1).abs())
                                      .max()
                                      .item<double>());
    }
    return largest;
  };
  // Values keep their floats here: rounding them to 8 bits moves what comes after a
  // little.
  EXPECT_LT(distance(fitted), 0.02);
  EXPECT_GT(distance(plain), 0.2);
  for (const auto& [name, coded] : plain.weights) {
    EXPECT_EQ(fitted.weights.at(name).codes, coded.codes) << name;
    const bool same = fitted.weights.at(name).scales == coded.scales;
    EXPECT_EQ(same, name == "linear.weight") << name;
  }
  EXPECT_THAT(fitted.accounts.at("conv1.weight").note,
              ::testing::MatchesRegex("scales by 0?[.0-9]+ to [.0-9]+: its channels' "
                                      "variance over 24 images"));
  EXPECT_EQ(fitted.accounts.at("conv1.bias").note,
            "corrected by its layer's mean error over 24 images");
}

TEST(ReestimateBatchNorms, NeedsAScaleARowAndStaticActivations) {
  CnnCase c = cnn_case();
  c.plan.batch_norm_reestimation = 8;
  c.plan.layers[1].scheme.weight = parse_scheme("int8/t@f32").value();
  EXPECT_EQ(
      failure_of(*c.model, c.plan, images(40, 3), StatusCode::invalid_argument),
      "[plan] layer1.0.conv1: batch_norm_reestimation needs one f32 scale a row, as "
      "int8/r@f32 has; found int8/t@f32; give the layer such a scheme, or use "
      "bias_correction");
  c = cnn_case();
  c.plan.batch_norm_reestimation = c.plan.bias_correction = 8;
  EXPECT_EQ(failure_of(*c.model, c.plan, images(40, 3), StatusCode::invalid_argument),
            "[plan] batch_norm_reestimation: it corrects the biases too; found "
            "bias_correction 8 beside it; set one of them to 0");
  c.plan.bias_correction = 0;
  c.plan.activations.clear();
  EXPECT_EQ(failure_of(*c.model, c.plan, images(40, 3), StatusCode::invalid_argument),
            "[plan] batch_norm_reestimation: static activations are required, as "
            "w8a8-static has; found none; leave it out");
}

// --- AdaRound on patches

TEST(AdaRoundOnConvolutions, ComesNearerToTheFloatNetAtAnyThreadCount) {
  const int before = thread_count();
  double nearest = 0, learned = 0;
  for (const uint64_t seed : {1, 2}) {
    CnnCase c = cnn_case(seed);
    for (LayerPlan& layer : c.plan.layers) {
      layer.scheme.weight = parse_scheme("int3/r@f32").value();
    }
    const at::NoGradGuard no_gradients;
    const at::Tensor others = to_torch(images(60, 4).images);
    ProgramModule module(*c.model);
    module->eval();
    const at::Tensor logits = module->forward(others);
    const auto distance = [&](const Calibrated& calibrated) {
      return run_exact(freeze(calibrated, {}), others, {})
          .sub(logits)
          .square()
          .mean()
          .item<double>();
    };
    const CalibrationData data = images(40, 3);
    nearest += distance(calibrate(c.model, c.plan, data, {}));
    for (LayerPlan& layer : c.plan.layers) layer.method = "adaround";
    c.plan.adaround.iterations = 300;
    std::vector<Calibrated> results;
    for (const int threads : {1, 2}) {
      set_thread_count(threads);
      results.push_back(calibrate(c.model, c.plan, data, {}));
    }
    set_thread_count(before);
    EXPECT_EQ(results[0].weights, results[1].weights);
    learned += distance(results[0]);
    // A ReLU alone reads conv1 and layer1.0.conv1; layer1.0.conv2 goes into a sum.
    for (const auto& [name, account] : results[0].accounts) {
      const bool seen = account.note.ends_with("the ReLU seen");
      EXPECT_EQ(seen, name == "conv1.weight" || name == "layer1.0.conv1.weight") << name;
    }
  }
  EXPECT_LT(learned, 0.5 * nearest);
}

TEST(CalibrateActivations, NeedDataAndFiniteValues) {
  const CnnCase c = cnn_case();
  EXPECT_EQ(
      failure_of(*c.model, c.plan, {}, StatusCode::failed_precondition),
      "[calibrate] activations: static scales needs calibration data; found none; give "
      "--calibration");
  EXPECT_THAT(
      failure_of(*c.model, c.plan, images(39, 3), StatusCode::failed_precondition),
      StartsWith("[calibrate] data: 40 images are planned; found 39;"));
  CalibrationData broken = images(40, 3);
  at::Tensor pixels = to_torch(broken.images);
  pixels[0][0][0][0] = std::nanf("");
  broken.images = from_torch(pixels);
  EXPECT_THAT(failure_of(*c.model, c.plan, broken, StatusCode::out_of_range),
              HasSubstr("activations must be finite on the calibration data; found NaN"));
}

}  // namespace
}  // namespace nibble
