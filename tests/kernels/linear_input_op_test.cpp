// The s8 rows of the linear table with activations under a calibrated scale, or one for
// each run of a token's columns.
#include <gmock/gmock.h>

#include <cmath>

#include "kernels/ops/linear/linear.h"
#include "kernels/ops/quantize_rows/quantize_rows.h"
#include "op_test.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

const char* const kSchemes[] = {
    "int4/g32@f16", "int4/g128@f16",  "int4/r@f32",
    "int8/r@f32",   "uint4/g128@f16+z/g128@uint4", "uint4/g32@f16+m/g32@f16",
    "int3/g64@f16", "int8/g128@f16",  "int4/g12@f32",
};

std::vector<const LinearKernel*> s8_rows() {
  std::vector<const LinearKernel*> rows;
  for (const LinearKernel& kernel : linear_kernels()) {
    if (kernel.activation == LinearActivation::s8) rows.push_back(&kernel);
  }
  return rows;
}

class LinearInputRow : public OpTest,
                       public ::testing::WithParamInterface<const LinearKernel*> {
 protected:
  void SetUp() override {
    if (!this_cpu_has(GetParam()->flags)) GTEST_SKIP() << "this CPU lacks what the row needs";
  }
  // The row's y under `input`, beside what linear_reference says; nothing where it refuses.
  void compare(const char* scheme, int64_t inputs, int64_t tokens, const LinearInput& input) {
    const LinearKernel& kernel = *GetParam();
    const int64_t outputs = 37;
    const LinearWeight weight = random_weight(scheme, outputs, inputs, 5);
    if (!kernel.can_run(weight.scheme, inputs, kernel.activation)) return;
    SCOPED_TRACE(testing::Message() << scheme << ", " << inputs << " inputs, " << tokens
                                    << " tokens, groups of " << input.group);
    const Result<PreparedLinear> prepared = prepare_linear(kernel, weight, input);
    ASSERT_TRUE(prepared.ok()) << prepared.status().message();
    Spaced x(random_floats(tokens * inputs, 6), tokens, inputs, 5);
    x.view()(0, inputs / 2) = 100;  // its run is coarser than the others
    const std::vector<float> bias = random_floats(outputs, 7);
    Spaced expected(tokens, outputs), found(tokens, outputs), two(tokens, outputs);
    ASSERT_TRUE(linear_reference(weight, LinearActivation::s8, x.view(), bias.data(),
                                 expected.view(), input)
                    .ok());
    run_linear(*prepared, x.view(), bias.data(), found.view());
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t o = 0; o < outputs; ++o) {
        ASSERT_EQ(found.view()(t, o), expected.view()(t, o)) << t << ", " << o;
      }
    }
    EXPECT_TRUE(found.gaps_untouched());
    set_thread_count(2);
    run_linear(*prepared, x.view(), bias.data(), two.view());
    set_thread_count(1);
    EXPECT_EQ(std::memcmp(found.data.data(), two.data.data(), found.data.size() * 4), 0);
  }
};

TEST_P(LinearInputRow, GroupsEqualTheReference) {
  for (const char* scheme : kSchemes) {
    for (const int64_t inputs : {172, 384}) {
      for (const int64_t group : {32, 128, 256}) {
        const LinearInput input = {.group = group};
        if (group_columns(*parse_scheme(scheme), inputs, input) < 8) continue;
        for (const int64_t tokens : {1, 3, 9, 40}) compare(scheme, inputs, tokens, input);
      }
    }
  }
}

TEST_P(LinearInputRow, CalibratedScalesEqualTheReference) {
  for (const char* scheme : kSchemes) {
    for (const int64_t tokens : {1, 4, 17}) {
      compare(scheme, 172, tokens, {.scale = 0.0117f});
      // Coarse enough that most of x saturates, at -128 too.
      compare(scheme, 384, tokens, {.scale = 0.001f, .lowest = -128});
    }
  }
}

// What the definition means: a run's own scale loses less than the token's.
TEST_P(LinearInputRow, GroupsLoseLessThanTokens) {
  const LinearKernel& kernel = *GetParam();
  const int64_t inputs = 512, outputs = 16;
  const LinearWeight weight = random_weight("int8/r@f32", outputs, inputs, 8);
  if (!kernel.can_run(weight.scheme, inputs, kernel.activation)) return;
  std::vector<float> x = random_floats(inputs, 9);
  x[3] = 50;
  const MatrixView<const float> in(x.data(), 1, inputs);
  std::vector<float> exact(16);
  ASSERT_TRUE(linear_reference(weight, LinearActivation::f32, in, nullptr,
                               MatrixView<float>(exact.data(), 1, outputs))
                  .ok());
  double lost[2] = {};
  for (const int64_t group : {0, 64}) {
    const Result<PreparedLinear> prepared =
        prepare_linear(kernel, weight, LinearInput{.group = group});
    ASSERT_TRUE(prepared.ok()) << prepared.status().message();
    std::vector<float> y(16, kPoison);
    run_linear(*prepared, in, nullptr, MatrixView<float>(y.data(), 1, outputs));
    for (size_t i = 0; i < y.size(); ++i) {
      lost[group > 0] += std::pow(static_cast<double>(y[i]) - exact[i], 2);
    }
  }
  EXPECT_LT(lost[1], 0.3 * lost[0]);
}

std::string row_name(const ::testing::TestParamInfo<const LinearKernel*>& info) {
  return test_name(info.param->name);
}
INSTANTIATE_TEST_SUITE_P(Rows, LinearInputRow, ::testing::ValuesIn(s8_rows()), row_name);

class LinearInputs : public OpTest {};

TEST_F(LinearInputs, RefusesWhatNoRowRuns) {
  const LinearWeight weight = random_weight("int4/g12@f32", 4, 96, 1);
  const LinearKernel* s8 = select_linear(weight.scheme, 96, LinearActivation::s8, 0);
  const LinearKernel* f32 = select_linear(weight.scheme, 96, LinearActivation::f32, 0);
  ASSERT_NE(s8, nullptr);
  const auto refusal = [&](const LinearKernel& kernel, const LinearInput& input) {
    return prepare_linear(kernel, weight, input).status();
  };
  EXPECT_THAT(refusal(*s8, {.group = 32}).message(),
              HasSubstr("a scale every 32 columns share no runs of 8 with int4/g12@f32"));
  for (const LinearInput& input :
       {LinearInput{.group = -1}, LinearInput{.scale = -1.0f}, LinearInput{.scale = NAN},
        LinearInput{.group = 24, .scale = 1.0f}, LinearInput{.lowest = -128},
        LinearInput{.scale = 1.0f, .lowest = 0}}) {
    EXPECT_EQ(refusal(*s8, input).code(), StatusCode::invalid_argument);
  }
  EXPECT_EQ(refusal(*f32, {.group = 24}).code(), StatusCode::invalid_argument);
}

TEST_F(LinearInputs, EveryRowRoundsByAGivenScaleAlike) {
  const int64_t cols = 133;
  std::vector<float> x = random_floats(3 * cols, 4);
  x[5] = 1e9f;
  x[6] = -1e9f;
  x[7] = NAN;
  x[8] = 0.5f * 0.03f;  // halves go to even
  x[9] = 1.5f * 0.03f;
  const MatrixView<const float> in(x.data(), 3, cols);
  for (const int lowest : {-127, -128}) {
    std::vector<int8_t> expected(static_cast<size_t>(3 * cols));
    quantize_rows_by_reference(in, 0.03f, lowest, {expected.data(), 3, cols});
    EXPECT_EQ(expected[5], 127);
    EXPECT_EQ(expected[6], lowest);
    EXPECT_EQ(expected[7], lowest);
    for (const QuantizeRowsKernel& kernel : quantize_rows_kernels()) {
      if (!this_cpu_has(kernel.flags)) continue;
      std::vector<int8_t> found(expected.size(), 99);
      kernel.run_by(in, 0.03f, lowest, {found.data(), 3, cols});
      EXPECT_EQ(found, expected) << kernel.name;
    }
  }
}

}  // namespace
}  // namespace nibble
