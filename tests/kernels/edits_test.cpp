#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/base/splitmix64.h"
#include "kernels/program/edits/fold_batch_norm.h"
#include "kernels/program/edits/untie.h"
#include "kernels/program/shape.h"

namespace nibble {
namespace {

using Tensors = std::map<std::string, Tensor>;
using Values = std::vector<double>;

// image -> conv -> bn -> relu -> pool -> fc -> fc_bn -> logits
Program small_net(bool conv_bias) {
  using Pair = std::vector<int64_t>;
  Program program;
  program.architecture = "Small";
  program.inputs = {{"image", DType::f32, {"batch", "2", "5", "5"}}};
  program.outputs = {{"logits", DType::f32, {"batch", "3"}}};
  const auto norm = [](const std::string& name, const std::string& in,
                       const std::string& out, int block) {
    return Node{"batch_norm",
                name,
                block,
                {in},
                {out},
                {{"weight", name + ".weight"},
                 {"bias", name + ".bias"},
                 {"running_mean", name + ".running_mean"},
                 {"running_var", name + ".running_var"}},
                {{"epsilon", 1e-5}}};
  };
  Node conv{"conv2d",
            "conv",
            0,
            {"image"},
            {"conv"},
            {{"weight", "conv.weight"}},
            {{"stride", Pair{2, 1}},
             {"padding", Pair{1, 0}},
             {"kernel", Pair{3, 3}},
             {"out_channels", int64_t{4}}}};
  if (conv_bias) conv.parameters["bias"] = "conv.bias";
  program.nodes.push_back(conv);
  program.nodes.push_back(norm("bn", "conv", "bn", 0));
  program.nodes.push_back({"relu", "relu", 0, {"bn"}, {"relu"}, {}, {}});
  program.nodes.push_back({"global_average_pool", "pool", 0, {"relu"}, {"pool"}, {}, {}});
  program.nodes.push_back({"linear",
                           "fc",
                           0,
                           {"pool"},
                           {"fc"},
                           {{"weight", "fc.weight"}, {"bias", "fc.bias"}},
                           {{"out_features", int64_t{3}}}});
  program.nodes.push_back(norm("fc_bn", "fc", "logits", 0));
  return program;
}

Tensors random_tensors(const Program& program, uint64_t seed) {
  SplitMix64 random(seed);
  Tensors tensors;
  const Result<Shapes> shapes = parameter_shapes(program);
  EXPECT_TRUE(shapes.ok()) << shapes.status().message();
  for (const auto& [name, shape] : *shapes) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<float> values(static_cast<size_t>(count));
    const bool variance = name.find("running_var") != std::string::npos;
    for (float& value : values) {
      value = static_cast<float>(variance ? 0.3 + random.uniform()
                                          : 2 * random.uniform() - 1);
    }
    tensors[name] = make_tensor(shape, std::span<const float>(values));
  }
  return tensors;
}

// A naive forward of the few ops above, in double: the definition that folding must keep.
std::map<std::string, Values> forward(const Program& program, const Tensors& tensors,
                                      const Values& image) {
  std::map<std::string, Values> values = {{"image", image}};
  Shapes given, shapes;
  for (const auto& [name, tensor] : tensors) given[name] = tensor.shape;
  EXPECT_TRUE(check_shapes(program, given, &shapes).ok());
  const auto parameter = [&](const Node& node, const char* role) {
    const std::string& name = node.parameter(role);
    return name.empty() ? std::vector<float>() : *to_float(tensors.at(name));
  };
  for (const Node& node : program.nodes) {
    const Values& x = values[node.inputs[0]];
    const std::vector<int64_t> in = shapes.at(node.inputs[0]);
    const std::vector<int64_t> out = shapes.at(node.outputs[0]);
    const std::vector<float> weight = parameter(node, "weight"),
                             bias = parameter(node, "bias");
    Values y;
    if (node.op == "conv2d") {
      const auto stride = node.integers("stride", {1, 1});
      const auto padding = node.integers("padding", {0, 0});
      for (int64_t o = 0; o < out[1]; ++o)
        for (int64_t h = 0; h < out[2]; ++h)
          for (int64_t w = 0; w < out[3]; ++w) {
            double sum = bias.empty() ? 0 : bias[o];
            for (int64_t c = 0; c < in[1]; ++c)
              for (int64_t i = 0; i < 3; ++i)
                for (int64_t j = 0; j < 3; ++j) {
                  const int64_t r = h * stride[0] + i - padding[0];
                  const int64_t s = w * stride[1] + j - padding[1];
                  if (r < 0 || s < 0 || r >= in[2] || s >= in[3]) continue;
                  sum += x[(c * in[2] + r) * in[3] + s] *
                         static_cast<double>(weight[((o * in[1] + c) * 3 + i) * 3 + j]);
                }
            y.push_back(sum);
          }
    } else if (node.op == "batch_norm") {
      const std::vector<float> mean = parameter(node, "running_mean");
      const std::vector<float> variance = parameter(node, "running_var");
      const size_t plane = x.size() / mean.size();
      for (size_t i = 0; i < x.size(); ++i) {
        const size_t c = i / plane;
        y.push_back((x[i] - mean[c]) /
                        std::sqrt(variance[c] + node.number("epsilon", 0)) * weight[c] +
                    bias[c]);
      }
    } else if (node.op == "relu") {
      for (const double v : x) y.push_back(std::max(v, 0.0));
    } else if (node.op == "global_average_pool") {
      const size_t plane = static_cast<size_t>(in[2] * in[3]);
      for (size_t c = 0; c < x.size() / plane; ++c) {
        double sum = 0;
        for (size_t i = 0; i < plane; ++i) sum += x[c * plane + i];
        y.push_back(sum / static_cast<double>(plane));
      }
    } else if (node.op == "linear") {
      for (size_t o = 0; o < static_cast<size_t>(out[1]); ++o) {
        double sum = bias.empty() ? 0 : bias[o];
        for (size_t k = 0; k < x.size(); ++k) sum += x[k] * weight[o * x.size() + k];
        y.push_back(sum);
      }
    }
    values[node.outputs[0]] = y;
  }
  return values;
}

class FoldBatchNorm : public ::testing::TestWithParam<bool> {};

TEST_P(FoldBatchNorm, KeepsEveryOutput) {
  const Program program = small_net(GetParam());
  const Tensors tensors = random_tensors(program, 3);
  Values image(50);
  SplitMix64 random(4);
  for (double& value : image) value = 2 * random.uniform() - 1;
  const auto before = forward(program, tensors, image);

  const Result<FoldedModel> folded = fold_batch_norm(program, tensors);
  ASSERT_TRUE(folded.ok()) << folded.status().message();
  EXPECT_EQ(folded->program.nodes.size(), program.nodes.size() - 2);
  EXPECT_EQ(folded->program.find("bn"), nullptr);
  // What comes after reads as before; the convolution now makes the batch norm's value.
  EXPECT_EQ(folded->program.find("conv")->outputs, (std::vector<std::string>{"bn"}));
  EXPECT_EQ(folded->program.outputs, program.outputs);
  const auto after = forward(folded->program, folded->tensors, image);
  // Weights are rounded to f32 once: 2^-24 relative, over sums of 18 and 4 terms near 1.
  for (const char* value : {"bn", "logits"}) {
    ASSERT_EQ(after.at(value).size(), before.at(value).size());
    double largest = 0;
    for (size_t i = 0; i < before.at(value).size(); ++i) {
      largest = std::max(largest, std::abs(after.at(value)[i] - before.at(value)[i]));
    }
    EXPECT_LT(largest, 32 * 0x1.0p-24) << value;
    EXPECT_GT(largest, 0) << "folding in f32 must round something";
  }
}

TEST_P(FoldBatchNorm, AccountsForEveryTensor) {
  const Program program = small_net(GetParam());
  const Tensors tensors = random_tensors(program, 5);
  const Result<FoldedModel> folded = fold_batch_norm(program, tensors);
  ASSERT_TRUE(folded.ok());
  ASSERT_EQ(folded->folded.size(), 8u);
  EXPECT_EQ(folded->folded[0], (FoldedTensor{"bn.weight", "conv.weight", 4}));
  EXPECT_EQ(folded->folded[1], (FoldedTensor{"bn.bias", "conv.bias", 4}));
  EXPECT_EQ(folded->folded[7], (FoldedTensor{"fc_bn.running_var", "fc.weight", 3}));
  for (const auto& [name, tensor] : tensors) {
    bool gone = false;
    for (const FoldedTensor& entry : folded->folded) gone = gone || entry.tensor == name;
    EXPECT_EQ(folded->tensors.count(name), gone ? 0u : 1u) << name;
  }
  EXPECT_EQ(folded->tensors.count("conv.bias"), 1u);
  EXPECT_EQ(folded->program.find("conv")->parameter("bias"), "conv.bias");
}

INSTANTIATE_TEST_SUITE_P(ConvBias, FoldBatchNorm, ::testing::Bool());

TEST(FoldBatchNormRefusal, StaysWhereTheLayerHasAnotherReader) {
  Program program = small_net(false);
  program.nodes.insert(program.nodes.begin() + 2,
                       Node{"add", "both", 0, {"conv", "bn"}, {"both"}, {}, {}});
  program.nodes[3].inputs = {"both"};
  const Tensors tensors = random_tensors(program, 6);
  const Result<FoldedModel> folded = fold_batch_norm(program, tensors);
  ASSERT_TRUE(folded.ok());
  EXPECT_NE(folded->program.find("bn"), nullptr);
  EXPECT_EQ(folded->program.find("fc_bn"), nullptr);
  EXPECT_EQ(folded->folded.size(), 4u);
}

TEST(FoldBatchNormRefusal, NamesWhatIsWrong) {
  const Program program = small_net(false);
  Tensors tensors = random_tensors(program, 7);
  tensors["conv.bias"] = tensors["bn.bias"];
  EXPECT_EQ(
      fold_batch_norm(program, tensors).status().message(),
      "[fold_batch_norm] conv.bias: the folded bias needs this name; the model has a "
      "tensor of it already");
  tensors.erase("conv.bias");
  tensors.erase("bn.running_mean");
  EXPECT_EQ(
      fold_batch_norm(program, tensors).status().message(),
      "[fold_batch_norm] bn.running_mean: this tensor is needed; the model has none of "
      "that name");
  tensors = random_tensors(program, 7);
  const std::vector<float> negative = {1, 1, -1, 1};
  tensors["bn.running_var"] = make_tensor({4}, std::span<const float>(negative));
  const Status status = fold_batch_norm(program, tensors).status();
  EXPECT_EQ(status.code(), StatusCode::out_of_range);
  EXPECT_EQ(
      status.message(),
      "[fold_batch_norm] bn.running_var: running_var + epsilon must be positive; found "
      "-0.99999 at channel 2");
}

Program tied_program() {
  Program program;
  program.vocabulary = 4;
  program.inputs = {{"ids", DType::i64, {"batch", "sequence"}}};
  program.outputs = {{"logits", DType::f32, {"batch", "sequence", "4"}}};
  program.nodes.push_back({"embedding",
                           "embed",
                           kFirstBlock,
                           {"ids"},
                           {"embed"},
                           {{"weight", "embed.weight"}},
                           {{"features", int64_t{2}}}});
  program.nodes.push_back({"linear",
                           "head",
                           kLastBlock,
                           {"embed"},
                           {"logits"},
                           {{"weight", "embed.weight"}},
                           {{"out_features", int64_t{4}}}});
  return program;
}

TEST(Untie, GivesEachLayerItsOwnWeight) {
  const Program program = tied_program();
  const Tensors tensors = random_tensors(program, 1);
  const Result<UntiedModel> untied = untie(program, tensors);
  ASSERT_TRUE(untied.ok());
  EXPECT_EQ(untied->program.find("embed")->parameter("weight"), "embed.weight");
  EXPECT_EQ(untied->program.find("head")->parameter("weight"), "head.weight");
  EXPECT_EQ(untied->added, (std::vector<std::string>{"head.weight"}));
  EXPECT_EQ(untied->tensors.at("head.weight").bytes.text(),
            tensors.at("embed.weight").bytes.text());
  // Nothing is tied any more: a second untie changes nothing.
  const Result<UntiedModel> again = untie(untied->program, untied->tensors);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->program, untied->program);
  EXPECT_TRUE(again->added.empty());
}

TEST(Untie, RefusesATakenName) {
  const Program program = tied_program();
  Tensors tensors = random_tensors(program, 1);
  tensors["head.weight"] = tensors["embed.weight"];
  EXPECT_EQ(
      untie(program, tensors).status().message(),
      "[untie] head: its own weight must be called head.weight; the model has a tensor "
      "of that name already");
}

}  // namespace
}  // namespace nibble
