// Scale groups: which there are, and that moving factors through them changes nothing.
#include "ptq/topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/base/splitmix64.h"
#include "kernels/program/edits/scale_channels.h"
#include "tests/ptq/calibration_cases.h"
#include "tests/ptq/small_models.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;

// Every group scaled by factors between 1/4 and 4.
Artifact scaled(const Artifact& model) {
  Artifact result = model;
  SplitMix64 random(5);
  for (const ScaleGroup& group : scale_groups(model.program, model.tensors)) {
    ChannelScaling scaling{group.makers, group.readers, group.channel_of_column, {}};
    for (int64_t c = 0; c < group.channels; ++c)
      scaling.scale.push_back(std::pow(4.0, 2 * random.uniform() - 1));
    EXPECT_TRUE(scale_channels(scaling, result.tensors).ok());
  }
  return result;
}

double largest_difference(const Artifact& a, const Artifact& b, const at::Tensor& input) {
  const at::NoGradGuard no_gradients;
  ProgramModule first(a), second(b);
  first->eval();
  second->eval();
  return (first->forward(input) - second->forward(input)).abs().max().item<double>();
}

TEST(ScaleGroups, OfADecoder) {
  const Artifact model = testing::small_llama(1);
  const std::vector<ScaleGroup> groups = scale_groups(model.program, model.tensors);
  std::vector<std::string> values;
  for (const ScaleGroup& group : groups) values.push_back(group.value);
  // The norm before lm_head is none: its reader's weight is tied to the embedding.
  EXPECT_THAT(
      values,
      ElementsAre("model.layers.0.input_layernorm", "model.layers.0.self_attn",
                  "model.layers.0.post_attention_layernorm", "model.layers.0.mlp.act",
                  "model.layers.1.input_layernorm", "model.layers.1.self_attn",
                  "model.layers.1.post_attention_layernorm", "model.layers.1.mlp.act"));
  EXPECT_THAT(groups[0].makers, ElementsAre("model.layers.0.input_layernorm.weight"));
  EXPECT_EQ(groups[0].readers.size(), 3u);
  EXPECT_THAT(groups[1].makers, ElementsAre("model.layers.0.self_attn.v_proj.weight"));
  EXPECT_EQ(groups[1].channels, 8);
  // Two query heads of 4 read each value head.
  EXPECT_THAT(groups[1].channel_of_column,
              ElementsAre(0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7));
  EXPECT_THAT(groups[3].makers, ElementsAre("model.layers.0.mlp.up_proj.weight"));
}

TEST(ScaleGroups, ADecoderKeepsItsFunction) {
  const Artifact model = testing::small_llama(2);
  const Artifact other = scaled(model);
  EXPECT_NE(value_or_throw(
                to_float(model.tensors.at("model.layers.0.self_attn.v_proj.weight"))),
            value_or_throw(
                to_float(other.tensors.at("model.layers.0.self_attn.v_proj.weight"))));
  const at::Tensor ids =
      at::tensor(testing::sequences(1, 24, 3).sequences[0]).to(at::kLong);
  EXPECT_LT(largest_difference(model, other, ids.unsqueeze(0)), 1e-4);
}

TEST(ScaleGroups, AConvolutionKeepsItsFunction) {
  const Artifact model = testing::small_cnn(3, 5, /*with_batch_norm=*/false);
  const std::vector<ScaleGroup> groups = scale_groups(model.program, model.tensors);
  // conv1's value goes into the shortcut as well, so only the block's inner one is a
  // group.
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(groups[0].value, "layer1.0.relu1");
  EXPECT_TRUE(groups[0].convolution);
  EXPECT_EQ(groups[0].channel_of_column.size(), 8u * 9);
  EXPECT_EQ(groups[0].channel_of_column[10], 1);
  const at::Tensor images =
      at::randn({2, 3, 8, 8}, at::detail::createCPUGenerator(4), at::kFloat);
  EXPECT_LT(largest_difference(model, scaled(model), images), 1e-4);
}

TEST(ScaleChannels, SaysWhatIsWrongAndChangesNothing) {
  std::map<std::string, Tensor> tensors = {
      {"norm", make_tensor({2}, std::vector<float>{1, 2})},
      {"linear", make_tensor({1, 2}, std::vector<float>{3, 4})}};
  const auto message = [&](const ChannelScaling& scaling) {
    return scale_channels(scaling, tensors).message();
  };
  EXPECT_EQ(message({{"norm"}, {"linear"}, {0, 1}, {2, 0}}),
            "[scale_channels] channel 1: a finite, positive factor is required; found 0");
  EXPECT_EQ(message({{"norm"}, {"linear"}, {0, 2}, {2, 2}}),
            "[scale_channels] a column's channel must be below 2; found 2");
  EXPECT_EQ(message({{"norms"}, {"linear"}, {0, 1}, {2, 2}}),
            "[scale_channels] norms: a float tensor is required; found none");
  EXPECT_EQ(message({{"norm"}, {"linear"}, {0, 1, 0}, {2, 2}}),
            "[scale_channels] linear: 3 columns are required; found [1, 2]");
  EXPECT_EQ(message({{"linear"}, {}, {}, {2, 2}}),
            "[scale_channels] linear: 2 rows are required; found [1, 2]");
  EXPECT_EQ(*to_float(tensors.at("norm")), (std::vector<float>{1, 2}));
  EXPECT_TRUE(scale_channels({{"norm"}, {"linear"}, {0, 1}, {2, 4}}, tensors).ok());
  EXPECT_EQ(*to_float(tensors.at("norm")), (std::vector<float>{0.5, 0.5}));
  EXPECT_EQ(*to_float(tensors.at("linear")), (std::vector<float>{6, 16}));
}

}  // namespace
}  // namespace nibble
