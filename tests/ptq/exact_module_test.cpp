#include "ptq/module/exact_module.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "kernels/packing/packed_tensor.h"
#include "kernels/runtime/executor.h"
#include "ptq/calibrate.h"
#include "recipes/data/images.h"
#include "recipes/models/load_model.h"
#include "recipes/recipe/recipe.h"
#include "tests/kernels/joined_net.h"
#include "tests/ptq/small_models.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::small_cnn;

const std::filesystem::path kData =
    std::filesystem::path(NIBBLE_SOURCE_DIR) / ".." / "shared" / "data";

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

// A frozen net of random scales: inner layers of `inner` bits, with their own input
// schemes where `requantize` is set.
Artifact random_integer_cnn(uint64_t seed, const char* inner, bool requantize) {
  Artifact artifact = small_cnn(seed, 5, /*with_batch_norm=*/false);
  const auto schemes = value_or_throw(
      integer_activations(artifact.program, *parse_scheme(kSignedActivation),
                          *parse_scheme(kUnsignedActivation)));
  at::Generator generator = at::detail::createCPUGenerator(seed + 1000);
  auto scale = [&](double middle) {
    return static_cast<float>(middle * (0.5 + at::rand({}, generator).item<double>()));
  };
  for (const Node& n : artifact.program.nodes) {
    const auto found = schemes.find(n.outputs[0]);
    if (found == schemes.end()) continue;
    ActivationScheme scheme = found->second;
    const bool moves = n.op == "shortcut_pad" || n.op == "flatten";
    scheme.scale = moves ? artifact.activations.at(n.inputs[0]).scale : scale(0.02);
    artifact.activations[n.outputs[0]] = scheme;
  }
  artifact.activations["image"] = schemes.at("image");
  artifact.activations["image"].scale = scale(0.03);
  for (const Node& n : artifact.program.nodes) {
    if (n.op != "conv2d" && n.op != "linear") continue;
    const bool ends = n.name == "conv1" || n.op == "linear";
    const std::string name = n.parameter("weight");
    const Tensor weight = artifact.tensors.at(name);
    const std::vector<float> values = *to_float(weight);
    const MatrixView<const float> x{values.data(), weight.rows(), weight.cols()};
    CodedMatrix coded =
        value_or_throw(choose_scales(x, *parse_scheme(ends ? "int8/r@f32" : inner), {}));
    throw_if_error(quantize(x, coded));
    artifact.packed[name] = value_or_throw(pack(coded, weight.shape));
    artifact.tensors.erase(name);
    LayerScheme layer;
    layer.weight = coded.scheme;
    if (requantize && !ends) {
      layer.input = ActivationScheme{*parse_scheme("uint4/t@f32"), false, scale(0.3), 0};
    }
    artifact.layers[name] = layer;
  }
  return artifact;
}

// Every value of the executor and of the exact mode, code by code; returns how many
// codes.
int64_t expect_same_integers(const Artifact& artifact, const torch::Tensor& images) {
  std::map<std::string, torch::Tensor> exact;
  const torch::Tensor logits = run_exact(
      artifact, images, [&](const std::string& value, const torch::Tensor& codes) {
        exact[value] = codes.contiguous();
      });
  Result<Executor> executor =
      Executor::create(std::make_shared<const Artifact>(artifact), ExecutorOptions{});
  EXPECT_TRUE(executor.ok()) << executor.status().message();
  if (!executor.ok()) return 0;
  int64_t codes = 0;
  std::set<std::string> seen;
  executor->set_tap([&](const TapValue& value) {
    if (value.codes.empty()) return;
    const auto found = exact.find(value.name);
    ASSERT_NE(found, exact.end()) << value.name;
    ASSERT_EQ(value.codes.size(), static_cast<size_t>(found->second.numel()))
        << value.name;
    EXPECT_EQ(value.scale, artifact.activations.at(value.name).scale) << value.name;
    int64_t different = 0;
    const int32_t* expected = found->second.const_data_ptr<int32_t>();
    for (size_t i = 0; i < value.codes.size(); ++i)
      different += value.codes[i] != expected[i];
    EXPECT_EQ(different, 0) << value.name << " of " << value.codes.size();
    codes += static_cast<int64_t>(value.codes.size());
    seen.insert(value.name);
  });
  torch::Tensor out = at::empty(logits.sizes());
  const torch::Tensor input = images.contiguous();
  const Status status = executor->forward_images(
      {input.const_data_ptr<float>(), static_cast<size_t>(input.numel())},
      input.sizes().vec(), {out.mutable_data_ptr<float>(), out.size(0), out.size(1)});
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(at::equal(out, logits)) << "logits to the bit";
  size_t made = 0;  // the executor need not tap the program's input
  for (const auto& [value, tensor] : exact) {
    made += seen.count(value) > 0 || value == artifact.program.inputs[0].name;
  }
  EXPECT_EQ(made, exact.size());
  return codes;
}

TEST(ExactModule, RandomNetsGiveTheExecutorsIntegers) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    for (const char* inner : {"int8/r@f32", "int4/r@f32", "int4n/t@f32", "int2/r@f32"}) {
      const Artifact artifact = random_integer_cnn(seed, inner, seed % 2 == 0);
      const int64_t codes = expect_same_integers(artifact, random({7, 3, 8, 8}, seed));
      EXPECT_GT(codes, 7 * 4 * 64) << inner;
      if (HasFailure()) return;
    }
  }
}

TEST(ExactModule, CodesFillTheirRangeAndNoMore) {
  const Artifact artifact = random_integer_cnn(3, "int8/r@f32", false);
  std::map<std::string, torch::Tensor> codes;
  run_exact(artifact, random({16, 3, 8, 8}, 4) * 3,
            [&](const std::string& value, const torch::Tensor& q) { codes[value] = q; });
  EXPECT_EQ(codes.size(), artifact.activations.size());
  for (const auto& [value, q] : codes) {
    const QuantScheme& scheme = artifact.activations.at(value).scheme;
    EXPECT_GE(q.min().item<int>(), code_lowest(scheme)) << value;
    EXPECT_LE(q.max().item<int>(), code_highest(scheme)) << value;
    EXPECT_GT(q.max().item<int>() - q.min().item<int>(), 60) << value;
  }
}

TEST(ExactModule, ErrorsNameWhatHasNoIntegers) {
  const torch::Tensor images = random({1, 3, 8, 8}, 5);
  Artifact artifact = random_integer_cnn(5, "int8/r@f32", false);
  artifact.activations.erase("layer1.0.add");
  artifact.activations.erase("layer1.0.relu2");
  Status status = status_of([&] { run_exact(artifact, images, {}); });
  EXPECT_EQ(status.code(), StatusCode::failed_precondition);
  EXPECT_THAT(status.message(),
              HasSubstr("layer1.0.relu2: an activation scheme was required"));

  artifact = random_integer_cnn(5, "int8/r@f32", false);
  artifact.packed.erase("linear.weight");
  artifact.layers.erase("linear.weight");
  status = status_of([&] { run_exact(artifact, images, {}); });
  EXPECT_THAT(status.message(),
              HasSubstr("linear: integer codes were required for linear.weight"));

  artifact = random_integer_cnn(5, "int4/g9@f32", false);
  status = status_of([&] { run_exact(artifact, images, {}); });
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_THAT(status.message(), HasSubstr("layer1.0.conv1: symmetric integer weights"));
  EXPECT_THAT(status.message(), HasSubstr("found int4/g9@f32"));

  artifact = random_integer_cnn(5, "int8/r@f32", false);
  artifact.activations.at("layer1.0.shortcut").scale *= 2;
  status = status_of([&] { run_exact(artifact, images, {}); });
  EXPECT_THAT(status.message(), HasSubstr("layer1.0.shortcut: the scale of its input"));

  Artifact normed = small_cnn(6);
  normed.activations["image"] =
      ActivationScheme{*parse_scheme("int8/t@f32"), false, 0.1f, 0};
  status = status_of([&] { run_exact(normed, images, {}); });
  EXPECT_EQ(status.code(), StatusCode::failed_precondition);
}

TEST(ExactModuleGolden, ResNet20InEightAndInFourBits) {
  const auto file = kData / "models" / "cifar10_resnet" / "resnet20_cifar10.safetensors";
  if (!std::filesystem::exists(file)) GTEST_SKIP() << "no " << file;
  const Artifact model =
      value_or_throw(prepare_for_plan(value_or_throw(load_model(file, {})), true));
  const ImageSet train = value_or_throw(load_images(kData / "cifar10", Split::train));
  const ImageSet test = value_or_throw(load_images(kData / "cifar10", Split::test));
  auto images_of = [&](const ImageSet& set, int64_t count) {
    torch::Tensor images = at::empty({count, 3, 32, 32});
    preprocess(set, 0, count, model.image_mean, model.image_std,
               images.mutable_data_ptr<float>());
    return images;
  };
  for (const char* name : {"w8a8-static", "w4a4-qat"}) {
    const Recipe recipe = value_or_throw(load_recipe(name, {"calibration.sequences=32"}));
    const Plan plan = value_or_throw(make_plan(recipe, model.program));
    CalibrationData data;
    data.images = from_torch(images_of(train, 32));
    data.description = "32 images";
    const Artifact artifact = freeze(
        calibrate(std::make_shared<const Artifact>(model), plan, data, nullptr), {});
    EXPECT_GT(expect_same_integers(artifact, images_of(test, 8)), 8 * 280000) << name;
  }
}

// Joins, pools and a softmax of floats at the end, as graphs read from ONNX have them.
TEST(ExactModule, JoinsAndPoolsGiveTheSameIntegers) {
  const Artifact artifact = sample::quantized_joined_net(6);
  const torch::Tensor images = random({4, 2, 6, 6}, 3).mul(0.4);
  std::map<std::string, torch::Tensor> exact;
  const torch::Tensor y = run_exact(
      artifact, images, [&](const std::string& value, const torch::Tensor& codes) {
        exact[value] = codes.contiguous();
      });
  Executor executor = value_or_throw(
      Executor::create(std::make_shared<const Artifact>(artifact), ExecutorOptions{}));
  int64_t values = 0;
  executor.set_tap([&](const TapValue& value) {
    const torch::Tensor& expected = exact.at(value.name);
    ASSERT_EQ(value.codes.size(), static_cast<size_t>(expected.numel())) << value.name;
    const int32_t* codes = expected.const_data_ptr<int32_t>();
    EXPECT_TRUE(std::equal(value.codes.begin(), value.codes.end(), codes)) << value.name;
    ++values;
  });
  std::vector<float> ours(20);
  const std::vector<int64_t> shape = {4, 2, 6, 6};
  const torch::Tensor flat = images.contiguous();
  throw_if_error(executor.forward_images(
      {flat.const_data_ptr<float>(), static_cast<size_t>(flat.numel())}, shape,
      MatrixView<float>(ours.data(), 4, 5)));
  EXPECT_EQ(values, 5);
  EXPECT_TRUE(at::allclose(at::tensor(ours).view({4, 5}), y, 1e-5, 1e-7));
}

}  // namespace
}  // namespace nibble
