#include "qat/prepare.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/program/edits/fold_batch_norm.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "ptq/module/exact_module.h"
#include "qat/batch_norm.h"
#include "qat/trainer.h"
#include "tests/ptq/small_models.h"
#include "tests/qat/training_cases.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::random;
using testing::small_cnn;
using testing::small_llama;

LayerPlan planned(const std::string& node, const std::string& weight,
                  const char* input = nullptr) {
  LayerPlan layer;
  layer.node = node;
  layer.tensor = node + ".weight";
  layer.scheme.weight = *parse_scheme(weight);
  layer.method = "rtn";
  if (input) layer.scheme.input = ActivationScheme{*parse_scheme(input), false, 0, 0};
  return layer;
}

// 4-bit weights and inputs inside, 8 bits at the ends.
Calibrated calibrated_cnn() {
  auto model =
      std::make_shared<const Artifact>(small_cnn(1, 5, /*with_batch_norm=*/false));
  Plan plan;
  plan.layers = {planned("conv1", "int8/r@f32"),
                 planned("layer1.0.conv1", "int4/r@f32", "uint4/t@f32"),
                 planned("layer1.0.conv2", "int4/r@f32", "uint4/t@f32"),
                 planned("linear", "int8/r@f32")};
  plan.activations =
      value_or_throw(integer_activations(model->program, *parse_scheme(kSignedActivation),
                                         *parse_scheme(kUnsignedActivation)));
  CalibrationData data;
  data.images = from_torch(random({32, 3, 8, 8}, 2));
  data.description = "noise";
  plan.calibration_sequences = 32;
  return calibrate(model, plan, data, nullptr);
}

// Which of five stripes an image is bright in.
TrainingData stripes() {
  TrainingData data;
  data.batches_per_epoch = 50;
  data.batch = [](int64_t epoch, int64_t batch) {
    torch::Tensor x =
        random({16, 3, 8, 8}, static_cast<uint64_t>(epoch * 100 + batch)) * 0.5;
    torch::Tensor target = at::empty({16}, at::kLong);
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t label = (i * 3 + batch) % 5;
      target[i] = label;
      x[i][label % 3] += label < 3 ? 1.0 : -1.0;
    }
    return TrainingBatch{x, target};
  };
  return data;
}

TEST(Prepare, TheFrozenNetIsTheTrainedOne) {
  const Calibrated before = calibrated_cnn();
  ProgramModule module = prepare(before, QatOptions{});
  EXPECT_EQ(module->weight_quantizers().size(), 4u);
  EXPECT_EQ(module->input_quantizers().size(), 2u);
  EXPECT_FALSE(module->value_quantizers().count("layer1.0.shortcut"));  // moves codes
  EXPECT_FALSE(module->value_quantizers().count("conv1"));  // its ReLU has the scheme
  EXPECT_FALSE(module->value_quantizers().count("linear"));

  TrainOptions options;
  options.optimizer = "sgd";
  options.learning_rate = 0.05;
  options.scale_learning_rate = 0.002;
  options.steps = 150;
  options.clip_norm = 0;
  options.log_every = 30;
  const TrainResult result = train(module, stripes(), options, {}, false, nullptr);
  EXPECT_LT(result.history.back().loss, 0.7 * result.history.front().loss);

  const Calibrated after = finish(module, before);
  int scales_moved = 0;
  for (const auto& [value, scheme] : after.activations) {
    scales_moved += scheme.scale != before.activations.at(value).scale;
  }
  EXPECT_GE(scales_moved, 5);
  EXPECT_NE(after.weights.at("linear.weight").scales,
            before.weights.at("linear.weight").scales);
  EXPECT_EQ(after.activations.at("layer1.0.shortcut").scale,
            after.activations.at("relu1").scale);
  EXPECT_NE(after.layer_inputs.at("layer1.0.conv1").scale,
            before.layer_inputs.at("layer1.0.conv1").scale);

  const Artifact artifact = freeze(after, Provenance{});
  EXPECT_TRUE(check_artifact(artifact).ok()) << check_artifact(artifact).message();
  EXPECT_EQ(artifact.ledger.find("linear.weight")->method, "lsq");
  EXPECT_GT(artifact.ledger.find("layer1.0.conv1.weight")->error, 1e-4);
  EXPECT_LT(artifact.ledger.find("layer1.0.conv1.weight")->error, 0.1);
  // The codes stand for the weights that training saw.
  torch::NoGradGuard no_grad;
  for (const auto& [name, packed] : artifact.packed) {
    const torch::Tensor seen = FakeQuantize(module->weight_quantizers().at(name))
                                   ->forward(module->parameter(name));
    torch::Tensor shipped = at::empty_like(seen).contiguous();
    ASSERT_TRUE(
        dequantize_rows(packed, 0,
                        {shipped.mutable_data_ptr<float>(), packed.rows, packed.cols})
            .ok());
    EXPECT_TRUE(at::equal(seen, shipped)) << name;
  }
  // The integers of the exact mode are the simulation's, but for float sums that fall on
  // the other side of a rounding.
  const torch::Tensor images = random({200, 3, 8, 8}, 9);
  std::map<std::string, torch::Tensor> codes;
  const torch::Tensor exact = run_exact(
      artifact, images,
      [&](const std::string& value, const torch::Tensor& q) { codes[value] = q; });
  int64_t compared = 0, different = 0;
  module->set_tap(
      [&](const Node& n, const std::vector<torch::Tensor>& inputs, const torch::Tensor&) {
        const auto found = codes.find(n.inputs[0]);
        if (n.op == "relu" || n.op == "add" || found == codes.end()) return;
        if (artifact.layers.count(n.name + ".weight") &&
            artifact.layers.at(n.name + ".weight").input)
          return;
        const torch::Tensor simulated =
            inputs[0] / artifact.activations.at(n.inputs[0]).scale;
        compared += simulated.numel();
        different += (simulated - found->second).abs().gt(0.5).sum().item<int64_t>();
      });
  const torch::Tensor simulated = module->forward(images);
  EXPECT_GT(compared, 40000);
  EXPECT_LT(different, compared / 500);
  EXPECT_LT((exact - simulated).abs().mean().item<double>(),
            0.02 * simulated.abs().mean().item<double>());
}

TEST(Prepare, WeightsAloneWithFixedLevels) {
  auto model = std::make_shared<const Artifact>(small_llama(3));
  Plan plan;
  for (const Node& n : model->program.nodes) {
    if (n.op != "linear" && n.op != "embedding") continue;
    if (n.name == "lm_head") continue;  // tied: the embedding's row plans it
    LayerPlan layer = planned(n.name, "uint4/g8@f16+z/g8@uint4");
    if (n.op == "embedding") {
      layer.scheme.weight = QuantScheme{};
      layer.method = "float";
      layer.reason = "embedding";
    }
    plan.layers.push_back(layer);
  }
  const Calibrated before = calibrate(model, plan, CalibrationData{}, nullptr);
  ProgramModule module = prepare(before, QatOptions{.learn_weight_scale = false});
  for (const auto& item : module->named_parameters()) {
    EXPECT_THAT(item.key(), ::testing::Not(HasSubstr("_quantizers.")))
        << "nothing is learned";
  }
  TrainingData data;
  data.batches_per_epoch = 10;
  data.batch = [](int64_t, int64_t batch) {
    at::Generator generator =
        at::detail::createCPUGenerator(static_cast<uint64_t>(batch));
    const torch::Tensor ids = at::randint(0, 23, {4, 9}, generator, at::kLong);
    return TrainingBatch{ids.slice(1, 0, 8), ids.slice(1, 1, 9).contiguous()};
  };
  TrainOptions options;
  options.steps = 5;
  options.learning_rate = 0.05;
  train(module, data, options, {}, false, nullptr);
  const Calibrated after = finish(module, before);
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  EXPECT_EQ(after.weights.at(name).scales, before.weights.at(name).scales);
  EXPECT_EQ(after.weights.at(name).offsets, before.weights.at(name).offsets);
  EXPECT_NE(after.weights.at(name).codes, before.weights.at(name).codes);
  EXPECT_EQ(after.plan.find(name)->method, "straight-through");
  EXPECT_NE(after.model->tensors.at("model.norm.weight").bytes.text(),
            before.model->tensors.at("model.norm.weight").bytes.text());
  const Artifact artifact = freeze(after, Provenance{});
  EXPECT_TRUE(check_artifact(artifact).ok()) << check_artifact(artifact).message();

  // A module of the artifact is the trained module, to the bit: same floats, same ops.
  ProgramModule shipped(artifact);
  shipped->eval();
  torch::NoGradGuard no_grad;
  const torch::Tensor ids = data.batch(0, 77).input;
  EXPECT_TRUE(at::equal(shipped->forward(ids), module->forward(ids)));
}

// What attention reads in training is what the runtime's cache gives back, and the
// queries as it rounds them.
TEST(Prepare, CachesAreSimulatedAsTheRuntimeStoresThem) {
  const auto model = std::make_shared<const Artifact>(small_llama(5));
  Plan plan;
  for (const Node& n : model->program.nodes) {
    if (n.op != "linear" && n.op != "embedding") continue;
    if (n.name == "lm_head") continue;  // tied: the embedding's row plans it
    LayerPlan layer = planned(n.name, "int8/r@f32");
    if (n.op == "embedding") {
      layer.scheme.weight = QuantScheme{};
      layer.method = "float";
      layer.reason = "embedding";
    }
    plan.layers.push_back(layer);
  }
  const Calibrated ready = calibrate(model, plan, {}, nullptr);
  const std::vector<int32_t> tokens = {3, 7, 1, 19, 22, 0, 5};
  torch::Tensor ids = at::empty({1, 7}, at::kLong);
  std::copy(tokens.begin(), tokens.end(), ids.mutable_data_ptr<int64_t>());
  for (const char* kv :
       {"int8", "fp8", "uint4/g4@f16+m/g4@f16", "uint4/b4x1@f16+m/b4x1@f16",
        "f32,f32,int8", "f32,f32,int4n/g4@f16", "int8,int8,fp8"}) {
    ProgramModule module = prepare(ready, {.kv = kv}), floats = prepare(ready, {});
    const auto artifact =
        std::make_shared<const Artifact>(freeze(finish(module, ready), Provenance{}));
    EXPECT_TRUE(artifact->activations.empty());
    Executor runtime = value_or_throw(Executor::create(artifact, {.kv = kv}));
    auto cache = value_or_throw(runtime.make_cache(7));
    torch::Tensor shipped = at::empty({7, 23});
    throw_if_error(
        runtime.forward(tokens, *cache, {shipped.mutable_data_ptr<float>(), 7, 23}));
    module->eval();
    floats->eval();
    torch::NoGradGuard no_grad;
    const torch::Tensor simulated = module->forward(ids)[0];
    const double size = simulated.norm().item<double>(),
                 gap = (simulated - shipped).norm().item<double>() / size,
                 effect =
                     (simulated - floats->forward(ids)[0]).norm().item<double>() / size;
    EXPECT_GT(effect, 1e-4) << kv;
    EXPECT_LT(gap, 0.05 * effect) << kv;
  }
  ProgramModule module = prepare(ready, {.kv = "int8"});
  module->forward(ids).square().sum().backward();  // straight through
  EXPECT_GT(module->parameter("model.layers.0.self_attn.k_proj.weight")
                .grad()
                .abs()
                .sum()
                .item<float>(),
            0);
}

TEST(Prepare, PactLearnsTheClipsOfStaticActivations) {
  const Calibrated ready = calibrated_cnn();
  ProgramModule module = prepare(ready, {.learn_activation_clip = true});
  int clips = 0;
  for (const auto& item : module->named_parameters())
    clips += item.key().find(".alpha") != std::string::npos;
  EXPECT_GE(clips, 5);
  TrainOptions options;
  options.steps = 20;
  options.learning_rate = 0.01;
  options.weight_decay = 0.5;  // the clip's too: 20 steps take about a tenth off
  train(module, stripes(), options, "", false, nullptr);
  const Calibrated after = finish(module, ready);
  EXPECT_LT(after.activations.at("relu1").scale,
            0.95f * ready.activations.at("relu1").scale);
  const Artifact artifact = freeze(after, Provenance{});
  EXPECT_EQ(artifact.activations.at("relu1").scale, after.activations.at("relu1").scale);
}

TEST(Prepare, DoReFaBeginsAtTheCalibratedCodesAndShipsWhatItSaw) {
  const Calibrated ready = calibrated_cnn();
  ProgramModule module = prepare(ready, {.squash_weights = true});
  const std::string name = "layer1.0.conv1.weight";
  FakeQuantize quantizer = module->weight_quantizers().at(name);
  EXPECT_EQ(quantizer->coded(module->parameter(name)).codes,
            ready.weights.at(name).codes);
  // Between c and 0 tanh takes more from the large ones: what is trained differs.
  EXPECT_FALSE(
      at::equal(module->parameter(name), quantizer->seen(module->parameter(name))));
  TrainOptions options;
  options.optimizer = "sgd";
  options.learning_rate = 0.05;
  options.scale_learning_rate = 0.002;
  options.steps = 60;
  options.log_every = 20;
  const TrainResult result = train(module, stripes(), options, {}, false, nullptr);
  EXPECT_LT(result.history.back().loss, result.history.front().loss);
  const Calibrated after = finish(module, ready);
  EXPECT_NE(after.weights.at(name).codes, ready.weights.at(name).codes);
  const Artifact artifact = freeze(after, Provenance{});
  torch::NoGradGuard no_grad;
  for (const auto& [tensor, packed] : artifact.packed) {
    const torch::Tensor simulated = FakeQuantize(module->weight_quantizers().at(tensor))
                                        ->forward(module->parameter(tensor));
    torch::Tensor shipped = at::empty_like(simulated).contiguous();
    ASSERT_TRUE(
        dequantize_rows(packed, 0,
                        {shipped.mutable_data_ptr<float>(), packed.rows, packed.cols})
            .ok());
    EXPECT_TRUE(at::equal(simulated, shipped)) << tensor;
  }
}

TEST(Prepare, FloatsGoBackToTheirDtype) {
  Artifact artifact = small_cnn(4, 5, false);
  Tensor& bias = artifact.tensors.at("linear.bias");
  const torch::Tensor half = to_torch(bias).to(at::kBFloat16);
  bias.dtype = DType::bf16;
  bias.bytes = Bytes::copy_of(half.const_data_ptr(), half.nbytes());
  Calibrated before;
  before.model = std::make_shared<const Artifact>(artifact);
  for (const char* name : {"conv1", "layer1.0.conv1", "layer1.0.conv2", "linear"}) {
    LayerPlan layer = planned(name, "int8/r@f32");
    layer.scheme.weight = QuantScheme{};
    layer.method = "float";
    layer.reason = "test";
    before.plan.layers.push_back(layer);
  }
  ProgramModule module = prepare(before, QatOptions{});
  module->set_parameter("linear.bias",
                        at::full({5}, 1.00390625f));  // between two bf16 numbers
  const Calibrated after = finish(module, before);
  const Tensor& found = after.model->tensors.at("linear.bias");
  EXPECT_EQ(found.dtype, DType::bf16);
  EXPECT_EQ((*to_float(found))[0], 1.0f);  // half to even
  EXPECT_EQ(after.model->tensors.at("linear.weight").bytes.text(),
            artifact.tensors.at("linear.weight").bytes.text());
}

TEST(Prepare, ALayerWithoutCodesIsNamed) {
  Calibrated before;
  before.model = std::make_shared<const Artifact>(small_cnn(5, 5, false));
  before.plan.layers = {planned("conv1", "int8/r@f32")};
  try {
    prepare(before, QatOptions{});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::failed_precondition);
    EXPECT_THAT(error.status().message(),
                HasSubstr("[prepare] conv1.weight: planned as int8/r@f32"));
  }
}

// --- with batch norms in place

struct Normed {
  Artifact model;
  Calibrated calibrated;
};
Normed calibrated_with_norms(const char* weight = "int4/r@f32") {
  Normed made{small_cnn(1), {}};
  FoldedModel folded =
      value_or_throw(fold_batch_norm(made.model.program, made.model.tensors));
  auto artifact = std::make_shared<Artifact>(made.model);
  artifact->program = std::move(folded.program);
  artifact->tensors = std::move(folded.tensors);
  Plan plan;
  plan.layers = {planned("conv1", "int8/r@f32"),
                 planned("layer1.0.conv1", weight, "uint4/t@f32"),
                 planned("layer1.0.conv2", "int4/r@f32", "uint4/t@f32"),
                 planned("linear", "int8/r@f32")};
  plan.activations = value_or_throw(
      integer_activations(artifact->program, *parse_scheme(kSignedActivation),
                          *parse_scheme(kUnsignedActivation)));
  CalibrationData data;
  data.images = from_torch(random({32, 3, 8, 8}, 2));
  data.description = "noise";
  plan.calibration_sequences = 32;
  made.calibrated = calibrate(std::move(artifact), plan, data, nullptr);
  return made;
}

TEST(BatchNorm, WithRunningStatisticsItIsTheFoldedNet) {
  const Normed made = calibrated_with_norms();
  ProgramModule with = prepare_with_norms(made.model, made.calibrated, QatOptions{});
  ProgramModule folded = prepare(made.calibrated, QatOptions{});
  with->eval();
  folded->eval();
  torch::NoGradGuard no_grad;
  const torch::Tensor images = random({64, 3, 8, 8}, 9);
  const torch::Tensor a = with->forward(images), b = folded->forward(images);
  // But for biases, which only the folded net rounds, and codes at a border.
  EXPECT_LT((a - b).abs().mean().item<double>(), 0.08 * b.abs().mean().item<double>());
  // Untrained, the fold gives back the codes that were calibrated.
  const Calibrated again = fold_trained(with, made.model, made.calibrated);
  int64_t different = 0, all = 0;
  for (const auto& [name, codes] : made.calibrated.weights) {
    const CodedMatrix& found = again.weights.at(name);
    for (size_t i = 0; i < codes.codes.size(); ++i)
      different += codes.codes[i] != found.codes[i];
    all += static_cast<int64_t>(codes.codes.size());
    for (size_t i = 0; i < codes.scales[0].values.size(); ++i)
      EXPECT_NEAR(found.scales[0].values[i] / codes.scales[0].values[i], 1, 1e-5) << name;
  }
  EXPECT_LE(different, all / 200);
  EXPECT_EQ(print_program(again.model->program),
            print_program(made.calibrated.model->program));
}

TEST(BatchNorm, TrainsOnBatchStatisticsAndThenFolds) {
  const Normed made = calibrated_with_norms();
  ProgramModule with = prepare_with_norms(made.model, made.calibrated, QatOptions{});
  TrainOptions options;
  options.optimizer = "sgd";
  options.learning_rate = 0.05;
  options.scale_learning_rate = 0.002;
  options.steps = 100;
  options.clip_norm = 0;
  options.log_every = 20;
  const TrainResult result = train(with, stripes(), options, {}, false, nullptr);
  EXPECT_LT(result.history.back().loss, 0.7 * result.history.front().loss);
  const Calibrated folded = fold_trained(with, made.model, made.calibrated);
  EXPECT_NE(folded.model->tensors.at("conv1.bias").bytes.text(),
            made.calibrated.model->tensors.at("conv1.bias").bytes.text());
  // What ships decides as the trained net does, statistics frozen.
  const Artifact artifact =
      freeze(finish(prepare(folded, QatOptions{}), folded), Provenance{});
  EXPECT_TRUE(check_artifact(artifact).ok()) << check_artifact(artifact).message();
  torch::NoGradGuard no_grad;
  const torch::Tensor images = random({200, 3, 8, 8}, 11);
  const torch::Tensor exact =
      run_exact(artifact, images, [](const std::string&, const torch::Tensor&) {});
  const torch::Tensor trained = with->forward(images);
  EXPECT_GE((exact.argmax(1) == trained.argmax(1)).sum().item<int64_t>(), 180);
}

TEST(BatchNorm, AWeightWithZeroPointsIsRefused) {
  const Normed made = calibrated_with_norms("uint4/r@f32+z/r@uint4");
  try {
    prepare_with_norms(made.model, made.calibrated, QatOptions{});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::unsupported);
    EXPECT_THAT(error.status().message(),
                HasSubstr("[batch norm] layer1.0.conv1.weight: one symmetric scale"));
  }
}

}  // namespace
}  // namespace nibble
