#include "kernels/program/edits/low_rank.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

using ::testing::HasSubstr;

Node linear(const std::string& name, int block, const std::string& input) {
  Node node;
  node.op = "linear";
  node.name = name;
  node.block = block;
  node.inputs = {input};
  node.outputs = {name};
  node.parameters = {{"weight", name + ".weight"}};
  return node;
}

struct Model {
  Program program;
  std::map<std::string, Tensor> tensors;
  WeightShapes shapes;
};

// x -> block 0: up (6 x 4) -> down (4 x 6) -> last: head (3 x 4)
Model model() {
  Model m;
  m.program.architecture = "MLP";
  m.program.inputs = {{"x", DType::f32, {"batch", "4"}}};
  m.program.outputs = {{"head", DType::f32, {"batch", "3"}}};
  m.program.nodes = {linear("up", 0, "x"), linear("down", 0, "up"),
                     linear("head", kLastBlock, "down")};
  auto add = [&](const std::string& name, int64_t out, int64_t in) {
    std::vector<float> values(static_cast<size_t>(out * in));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(std::sin(1.7 * static_cast<double>(i + 1)));
    m.tensors[name] = make_tensor({out, in}, std::span<const float>(values));
    m.shapes[name] = {out, in};
  };
  add("up.weight", 6, 4);
  add("down.weight", 4, 6);
  add("head.weight", 3, 4);
  return m;
}

TEST(LowRank, AddsNodesBesideEachLinearOfABlock) {
  Model m = model();
  const auto added = add_low_rank(m.program, m.tensors, m.shapes, {.rank = 2});
  ASSERT_TRUE(added.ok()) << added.status().message();
  EXPECT_EQ(*added,
            (std::vector<std::string>{"up.lora_A.weight", "up.lora_B.weight",
                                      "down.lora_A.weight", "down.lora_B.weight"}));
  EXPECT_TRUE(has_low_rank(m.program));
  EXPECT_TRUE(check_program(m.program).ok());
  ASSERT_EQ(m.program.nodes.size(), 9u);
  EXPECT_EQ(m.program.find("up")->outputs[0], "up.base_output");
  EXPECT_EQ(m.program.producer("up")->op, "add");
  EXPECT_EQ(m.program.find("down.lora_A")->inputs[0], "up");
  EXPECT_EQ(m.tensors.at("up.lora_A.weight").shape, (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(m.tensors.at("up.lora_B.weight").shape, (std::vector<int64_t>{6, 2}));
  // A within its bound and not nothing, B nothing.
  const std::vector<float> values = *to_float(m.tensors.at("up.lora_A.weight"));
  for (const float a : values) EXPECT_LE(std::abs(a), 0.5f);
  EXPECT_NE(values, std::vector<float>(8, 0.0f));
  EXPECT_EQ(*to_float(m.tensors.at("up.lora_B.weight")), std::vector<float>(12, 0.0f));
}

TEST(LowRank, MergingIsTheSumAndTheOldGraph) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Model m = model();
    const Program before = m.program;
    if (dtype == DType::bf16) {
      // Whole numbers and halves are bf16 numbers.
      std::byte* bytes = nullptr;
      Tensor half{dtype, {6, 4}, Bytes::allocate(48, &bytes)};
      for (int i = 0; i < 24; ++i) reinterpret_cast<uint16_t*>(bytes)[i] = 0x3f80;  // 1
      m.tensors["up.weight"] = half;
    }
    ASSERT_TRUE(
        add_low_rank(m.program, m.tensors, m.shapes, {.pattern = "up", .rank = 2}).ok());
    std::vector<float> b(12);
    for (size_t i = 0; i < 12; ++i) b[i] = 0.25f * static_cast<float>(i % 3);
    m.tensors["up.lora_B.weight"] = make_tensor({6, 2}, std::span<const float>(b));
    const std::vector<float> w = *to_float(m.tensors.at("up.weight")),
                             a = *to_float(m.tensors.at("up.lora_A.weight"));
    ASSERT_TRUE(merge_low_rank(m.program, m.tensors).ok());
    EXPECT_EQ(print_program(m.program), print_program(before));
    EXPECT_EQ(m.tensors.size(), 3u);
    EXPECT_EQ(m.tensors.at("up.weight").dtype, dtype);
    const std::vector<float> merged = *to_float(m.tensors.at("up.weight"));
    for (size_t o = 0; o < 6; ++o) {
      for (size_t i = 0; i < 4; ++i) {
        const double expected = w[o * 4 + i] + static_cast<double>(b[o * 2]) * a[i] +
                                static_cast<double>(b[o * 2 + 1]) * a[4 + i];
        EXPECT_NEAR(merged[o * 4 + i], expected,
                    dtype == DType::f32 ? 1e-7 : std::abs(expected) / 256);
      }
    }
  }
}

TEST(LowRank, SaysWhatIsWrong) {
  Model m = model();
  auto refused = [&](const LowRankOptions& options) {
    const auto result = add_low_rank(m.program, m.tensors, m.shapes, options);
    EXPECT_FALSE(result.ok());
    return result.status().message();
  };
  EXPECT_THAT(refused({.rank = 0}), HasSubstr("rank: 1 or more was required; found 0"));
  EXPECT_THAT(refused({.pattern = "head"}),
              HasSubstr("a linear layer inside a block was required to match"));
  EXPECT_THAT(merge_low_rank(m.program, m.tensors).message(),
              HasSubstr("a model with adapters was required"));
  m.shapes.erase("down.weight");
  EXPECT_THAT(refused({}), HasSubstr("[low rank] down: a weight [out, in] was required"));
  m = model();
  ASSERT_TRUE(add_low_rank(m.program, m.tensors, m.shapes, {}).ok());
  EXPECT_THAT(refused({}), HasSubstr("a model without adapters was required"));
  EXPECT_EQ(low_rank_tensors(m.program),
            (std::set<std::string>{"up.lora_A.weight", "up.lora_B.weight",
                                   "down.lora_A.weight", "down.lora_B.weight"}));
  m = model();
  for (const char* name : {"head", "nothing"}) {
    EXPECT_THAT(insert_low_rank(m.program, m.tensors, {{name, {}}}).status().message(),
                HasSubstr(cat("[low rank] ", name,
                              ": a linear layer inside a block was "
                              "required; found ")));
  }
}

}  // namespace
}  // namespace nibble
