// What calibration does to convolutions that meet in a concat (SqueezeNet's fire module):
// equalization, GPTQ on patches, bytes as images.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/packing/packed_tensor.h"
#include "ptq/calibrate.h"
#include "ptq/error.h"
#include "ptq/module/exact_module.h"
#include "tests/ptq/small_models.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// image 3 x 9 x 9 -> conv1 3x3 -> relu -> max_pool -> squeeze 1x1 -> relu
// -> [expand1 1x1 -> relu, expand3 3x3 -> relu] -> concat -> conv10 1x1 -> relu
// -> global average pool -> linear, 5 classes. Channels differ in range by up to 30
// times.
Artifact fire_net(uint64_t seed, int64_t padding = 0) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  Artifact artifact;
  Program& p = artifact.program;
  p.architecture = "ONNX";
  p.inputs = {{"image", DType::f32, {"batch", "3", "9", "9"}}};
  p.outputs = {{"linear", DType::f32, {"batch", "5"}}};
  const auto conv = [&](const std::string& name, const std::string& input, int64_t in,
                        int64_t out, int64_t kernel, int64_t pad) {
    at::Tensor weight = at::randn({out, in, kernel, kernel}, generator, at::kFloat);
    weight *= at::rand({out, 1, 1, 1}, generator, at::kFloat).mul(3.4).exp() /
              (6.0 * static_cast<double>(in * kernel));
    artifact.tensors[name + ".weight"] = from_torch(weight);
    testing::add_random(artifact, generator, name + ".bias", {out}, 0.1);
    p.nodes.push_back(
        testing::node("conv2d", name, 0, {input},
                      {{"weight", name + ".weight"}, {"bias", name + ".bias"}},
                      {{"padding", std::vector<int64_t>{pad, pad}}}));
    p.nodes.push_back(testing::node("relu", name + ".relu", 0, {name}));
    return name + ".relu";
  };
  const std::string first = conv("conv1", "image", 3, 8, 3, padding);
  p.nodes.push_back(testing::node(
      "max_pool", "pool1", 0, {first}, {},
      {{"kernel", std::vector<int64_t>{2, 2}}, {"stride", std::vector<int64_t>{1, 1}}}));
  const std::string squeezed = conv("squeeze", "pool1", 8, 6, 1, 0);
  const std::string narrow = conv("expand1", squeezed, 6, 8, 1, 0);
  const std::string wide = conv("expand3", squeezed, 6, 8, 3, 1);
  p.nodes.push_back(testing::node("concat", "both", 0, {narrow, wide}));
  const std::string last = conv("conv10", "both", 16, 12, 1, 0);
  p.nodes.push_back(testing::node("global_average_pool", "pool", 0, {last}));
  p.nodes.push_back(
      testing::node("linear", "linear", 0, {"pool"},
                    {{"weight", "linear.weight"}, {"bias", "linear.bias"}}));
  testing::add_random(artifact, generator, "linear.weight", {5, 12}, 0.4);
  testing::add_random(artifact, generator, "linear.bias", {5}, 0.2);
  artifact.image_mean = {0.4f, 0.5f, 0.6f};
  artifact.image_std = {0.25f, 0.2f, 0.3f};
  artifact.config_json = "{}";
  return artifact;
}

Plan plan_for(const Artifact& model, const char* weight, const char* method) {
  Plan plan;
  plan.calibration_sequences = 48;
  plan.activations =
      integer_activations(model.program, parse_scheme(kSignedActivation).value(),
                          parse_scheme(kUnsignedActivation).value())
          .value();
  for (const Node& node : model.program.nodes) {
    if (!find_op(node.op)->is_layer) continue;
    LayerPlan layer;
    layer.node = node.name;
    layer.tensor = node.parameter("weight");
    layer.scheme.weight = parse_scheme(weight).value();
    layer.method = method;
    plan.layers.push_back(layer);
  }
  return plan;
}

at::Tensor byte_images(int64_t count, uint64_t seed) {  // bytes / 255
  return at::randint(0, 256, {count, 3, 9, 9}, at::detail::createCPUGenerator(seed),
                     at::kFloat) /
         255;
}

at::Tensor normalized(const Artifact& model, const at::Tensor& x) {
  const at::Tensor mean = at::tensor(model.image_mean).view({1, -1, 1, 1});
  return (x - mean) / at::tensor(model.image_std).view({1, -1, 1, 1});
}

at::Tensor run(const Artifact& model, const at::Tensor& x) {
  const at::NoGradGuard no_gradients;
  ProgramModule module(model);
  module->eval();
  return module->forward(x);
}

// Mean squared difference of the integer net's logits from the float net's, on images
// that calibration did not see.
double loss(const Artifact& model, const Plan& plan) {
  CalibrationData data;
  data.images = from_torch(normalized(model, byte_images(48, 3)));
  const Artifact frozen =
      freeze(calibrate(std::make_shared<Artifact>(model), plan, data, {}), {});
  const at::Tensor x = normalized(model, byte_images(64, 4));
  return (run_exact(frozen, x, {}) - run(model, x)).square().mean().item<double>();
}

TEST(Equalize, KeepsTheFunctionAndEvensTheRangesOfWhatIsRounded) {
  const auto model = std::make_shared<Artifact>(fire_net(1));
  Plan plan = plan_for(*model, "int8/r@f32", "rtn");
  plan.transforms = {"equalize"};
  CalibrationData data;
  data.images = from_torch(normalized(*model, byte_images(48, 3)));
  const Calibrated calibrated = calibrate(model, plan, data, {});

  const at::Tensor x = normalized(*model, byte_images(16, 4));
  EXPECT_LT((run(*calibrated.model, x) - run(*model, x)).abs().max().item<float>(),
            1e-5f);
  const auto unevenness = [&](const Artifact& of, const std::string& value) {
    at::Tensor most;
    ProgramModule module(of);
    module->eval();
    module->set_tap(
        [&](const Node& node, const std::vector<at::Tensor>&, const at::Tensor& y) {
          if (node.outputs[0] == value) most = y.amax({0, 2, 3});
        });
    const at::NoGradGuard no_gradients;
    module->forward(x);
    return (most.max() / most.mean()).item<float>();
  };
  for (const char* value : {"conv1.relu", "squeeze.relu", "both", "conv10.relu"}) {
    EXPECT_LT(unevenness(*calibrated.model, value), 0.8f * unevenness(*model, value))
        << value;
  }
  EXPECT_THAT(calibrated.accounts.at("expand3.weight").note,
              StartsWith("equalized: channels divided by "));
  EXPECT_EQ(calibrated.accounts.at("linear.weight").note, "");
}

TEST(Equalize, LosesLessInRounding) {
  const Artifact model = fire_net(1);
  Plan plan = plan_for(model, "int8/r@f32", "rtn");
  const double plain = loss(model, plan);
  plan.transforms = {"equalize"};
  EXPECT_LT(loss(model, plan), 0.85 * plain);
}

TEST(Equalize, NeedsLayersThatReadEachOther) {
  Artifact model = testing::small_llama(1);
  const Plan plan = [&] {
    Plan made;
    made.transforms = {"equalize"};
    made.calibration_sequences = 1;
    for (const Node& node : model.program.nodes) {
      if (!find_op(node.op)->is_layer || made.find(node.parameter("weight"))) continue;
      made.layers.push_back({.node = node.name,
                             .tensor = node.parameter("weight"),
                             .scheme = {},
                             .method = "float",
                             .rule = {},
                             .reason = "x",
                             .input_reason = {}});
    }
    return made;
  }();
  CalibrationData data;
  data.sequences = {{1, 2, 3}};
  try {
    calibrate(std::make_shared<Artifact>(model), plan, data, {});
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(
        error.what(),
        "[equalize] convolutions or linear layers that read each other through "
        "ReLUs, poolings and concats are required; found none; leave the transform "
        "out");
  }
}

TEST(GptqOfConvolutions, LosesLessThanRoundingToNearest) {
  const Artifact model = fire_net(2);
  const double nearest = loss(model, plan_for(model, "int3/r@f32", "rtn"));
  const double solved = loss(model, plan_for(model, "int3/r@f32", "gptq"));
  EXPECT_LT(solved, 0.5 * nearest);
}

TEST(GptqOfConvolutions, IsForOneGroup) {
  Artifact model = fire_net(2);
  const Plan plan = plan_for(model, "int4/r@f32", "gptq");
  for (Node& node : model.program.nodes) {
    if (node.name == "squeeze") node.attributes["groups"] = int64_t{2};
  }
  EXPECT_EQ(check_plan(plan, model.program).message(),
            "[plan] squeeze: method gptq solves linear layers and convolutions of one "
            "group; squeeze reads squeeze.weight as conv2d; use rtn for it");
}

TEST(ByteImages, AreExactAndTheModelTakesTheirNormalization) {
  const Artifact model = fire_net(3);
  const auto folded =
      std::make_shared<Artifact>(prepare_for_plan(model, true, true).value());
  EXPECT_THAT(folded->image_mean, ::testing::Each(0.0f));
  EXPECT_THAT(folded->image_std, ::testing::Each(1.0f));
  const at::Tensor bytes = byte_images(16, 5);
  EXPECT_LT((run(*folded, bytes) - run(model, normalized(model, bytes)))
                .abs()
                .max()
                .item<float>(),
            1e-5f);

  Plan plan = plan_for(*folded, "int8/r@f32", "rtn");
  plan.byte_images = true;
  EXPECT_EQ(check_plan(plan, folded->program).message(),
            "[plan] byte images: static activations of uint8 codes are required; found "
            "int8/t@f32");
  plan.activations.at("image").scheme = parse_scheme(kUnsignedActivation).value();
  CalibrationData data;
  data.images = from_torch(byte_images(48, 3) * 0.9);  // the scale is not theirs
  const Calibrated calibrated = calibrate(folded, plan, data, {});
  EXPECT_EQ(calibrated.activations.at("image").scale, 1.0f / 255);
}

TEST(ByteImages, NeedAFirstLayerThatDoesNotPad) {
  EXPECT_EQ(
      prepare_for_plan(fire_net(3, /*padding=*/1), true, true).status().message(),
      "[fold_normalization] conv1: a first convolution that does not pad is required "
      "(its zeros stand for the mean's pixel); found padding 1; leave "
      "activations.images normalized");
}

}  // namespace
}  // namespace nibble
