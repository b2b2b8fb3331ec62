#include "ptq/module/sequential.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "kernels/runtime/executor.h"
#include "ptq/error.h"
#include "ptq/methods/method.h"
#include "ptq/module/program_module.h"

namespace nibble {
namespace {

using testing::HasSubstr;
namespace nn = torch::nn;

std::string refusal_of(const nn::Sequential& net, const std::vector<int64_t>& input) {
  try {
    artifact_of(net, input);
  } catch (const Error& problem) {
    return problem.what();
  }
  return "";
}

nn::Sequential every_module() {
  torch::manual_seed(3);
  nn::Sequential net(
      nn::Conv2d(
          nn::Conv2dOptions(3, 8, {3, 5}).padding({1, 2}).stride({2, 1}).bias(false)),
      nn::BatchNorm2d(8), nn::ReLU(), nn::Dropout(0.5),
      nn::Conv2d(nn::Conv2dOptions(8, 8, 3).groups(4)),
      nn::LeakyReLU(nn::LeakyReLUOptions().negative_slope(0.2)), nn::AdaptiveAvgPool2d(1),
      nn::Flatten(), nn::Linear(8, 6), nn::ReLU(),
      nn::Linear(nn::LinearOptions(6, 4).bias(false)), nn::Identity());
  // Running statistics that are not 0 and 1.
  net->train();
  for (int i = 0; i < 3; ++i) net->forward(torch::randn({16, 3, 12, 10}) * 2 + 1);
  net->eval();
  return net;
}

TEST(Sequential, RunsAsTheNetItself) {
  torch::NoGradGuard no_grad;
  nn::Sequential net = every_module();
  const auto artifact = std::make_shared<const Artifact>(artifact_of(net, {3, 12, 10}));
  EXPECT_EQ(artifact->tensors.count("0.weight"), 1u);
  EXPECT_EQ(artifact->tensors.count("1.running_var"), 1u);
  const torch::Tensor images = torch::randn({5, 3, 12, 10});
  const torch::Tensor expected = net->forward(images);

  ProgramModule module(*artifact);
  module->eval();
  EXPECT_TRUE(torch::allclose(module->forward(images), expected, 1e-5, 1e-6));

  auto runtime = Executor::create(artifact, {});
  ASSERT_TRUE(runtime.ok()) << runtime.status().message();
  torch::Tensor logits = torch::empty({5, 4});
  const Status status = runtime->forward_images(
      {images.data_ptr<float>(), static_cast<size_t>(images.numel())},
      std::vector<int64_t>{5, 3, 12, 10}, {logits.data_ptr<float>(), 5, 4});
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(torch::allclose(logits, expected, 1e-4, 1e-5));
}

TEST(Sequential, CopiesTheWeights) {
  torch::NoGradGuard no_grad;
  nn::Sequential net(nn::Flatten(), nn::Linear(4, 2));
  const Artifact artifact = artifact_of(net, {1, 2, 2});
  net->named_parameters()["1.weight"].zero_();
  const auto weight = to_float(artifact.tensors.at("1.weight"));
  ASSERT_TRUE(weight.ok());
  EXPECT_NE((*weight)[0], 0);
}

TEST(Sequential, RefusesWhatItHasNoOpFor) {
  EXPECT_THAT(
      refusal_of(nn::Sequential(nn::Flatten(), nn::Linear(4, 2), nn::GELU()), {1, 2, 2}),
      HasSubstr("[sequential] 2: Linear, Conv2d, BatchNorm2d, ReLU, LeakyReLU, "
                "Flatten, AdaptiveAvgPool2d, Identity or Dropout is required; found "
                "torch::nn::GELUImpl; give nibble a Program of the model"));
  EXPECT_THAT(
      refusal_of(nn::Sequential(nn::Conv2d(nn::Conv2dOptions(1, 2, 3).dilation(2))),
                 {1, 8, 8}),
      HasSubstr("[sequential] 0: Conv2d with zero padding by numbers and without "
                "dilation is required; found another"));
  EXPECT_THAT(refusal_of(nn::Sequential(nn::AdaptiveAvgPool2d(2)), {1, 8, 8}),
              HasSubstr("AdaptiveAvgPool2d to 1x1 is required; found another size"));
  EXPECT_THAT(
      refusal_of(nn::Sequential(nn::BatchNorm2d(nn::BatchNormOptions(1).affine(false))),
                 {1, 8, 8}),
      HasSubstr("BatchNorm2d with affine and running statistics is required"));
  EXPECT_THAT(refusal_of(nn::Sequential(nn::Linear(4, 2)), {4}),
              HasSubstr("[sequential] input: [channels, height, width] of one sample is "
                        "required; found 1 sizes"));
  EXPECT_THAT(refusal_of(nn::Sequential(nn::Flatten(), nn::Linear(5, 2)), {1, 2, 2}),
              HasSubstr("1.weight"));
  EXPECT_THAT(refusal_of(nn::Sequential(), {1, 2, 2}),
              HasSubstr("at least one module is required; found none"));
}

TEST(AddMethod, NamesAreNew) {
  const Status taken =
      add_method({.name = "gptq", .needs_inputs = true, .solve = nullptr});
  EXPECT_EQ(taken.code(), StatusCode::invalid_argument);
  EXPECT_THAT(taken.message(), HasSubstr("a new name is required; found `gptq`"));
  const auto solve = find_method("rtn")->solve;
  ASSERT_TRUE(add_method({.name = "mine", .needs_inputs = true, .solve = solve}).ok());
  ASSERT_NE(find_method("mine"), nullptr);
  EXPECT_TRUE(method_needs_inputs("mine"));
  EXPECT_FALSE(method_needs_inputs("rtn"));
  EXPECT_THAT(method_names(), testing::Contains("mine"));
}

}  // namespace
}  // namespace nibble
