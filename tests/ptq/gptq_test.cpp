// GPTQ against the paper's equations written out plainly, and what it does beyond them.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/base/parallel.h"
#include "ptq/error.h"
#include "ptq/methods/method.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// Inputs whose columns are correlated and differ in size, as activations are.
at::Tensor correlated_inputs(int64_t tokens, int64_t columns, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const at::Tensor sources = at::randn({tokens, columns / 3}, generator, at::kFloat);
  const at::Tensor mixing = at::randn({columns / 3, columns}, generator, at::kFloat);
  const at::Tensor noise = at::randn({tokens, columns}, generator, at::kFloat);
  const at::Tensor sizes = at::rand({columns}, generator, at::kFloat) + 0.2;
  return ((at::mm(sources, mixing) + 0.5 * noise) * sizes).contiguous();
}

struct Case {
  at::Tensor weight;  // f32 [rows, columns]
  Hessian inputs;
  LayerProblem problem;

  Case(int64_t rows, at::Tensor x, const char* scheme, uint64_t seed)
      : weight(at::randn({rows, x.size(1)}, at::detail::createCPUGenerator(seed),
                         at::kFloat)),
        inputs(x.size(1)) {
    inputs.accumulate(x);
    problem.node = "layer";
    problem.weight = {weight.data_ptr<float>(), rows, x.size(1)};
    problem.scheme = parse_scheme(scheme).value();
    problem.inputs = &inputs;
  }
  double error(const SolvedLayer& solved) const {
    return output_error(problem.weight, solved.coded, inputs);
  }
};

// Gauss-Jordan, so that nothing is shared with the code under test.
std::vector<double> inverse(std::vector<double> a, int64_t n) {
  std::vector<double> result(n * n, 0.0);
  for (int64_t i = 0; i < n; ++i) result[i * n + i] = 1;
  for (int64_t i = 0; i < n; ++i) {
    const double pivot = a[i * n + i];
    for (int64_t k = 0; k < n; ++k) a[i * n + k] /= pivot, result[i * n + k] /= pivot;
    for (int64_t r = 0; r < n; ++r) {
      const double factor = a[r * n + i];
      if (r == i) continue;
      for (int64_t k = 0; k < n; ++k) {
        a[r * n + k] -= factor * a[i * n + k];
        result[r * n + k] -= factor * result[i * n + k];
      }
    }
  }
  return result;
}

// Equations 2 and 3 of arXiv 2210.17323, a column at a time: every free weight moves by
// -(w_j - q) / [H^-1]_jj * [H^-1]_j, then row and column j leave the inverse.
std::vector<uint8_t> brute_force(const Case& c, const CodedMatrix& levels) {
  const int64_t n = c.problem.weight.cols, rows = c.problem.weight.rows;
  const at::Tensor h = c.inputs.matrix();
  std::vector<double> damped(h.data_ptr<double>(), h.data_ptr<double>() + n * n);
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) mean += damped[i * n + i] / static_cast<double>(n);
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  const auto diagonal_of = [&](int64_t j) { return damped[j * n + j]; };
  if (c.problem.gptq.act_order) {
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return diagonal_of(a) > diagonal_of(b);
    });
  }
  if (c.problem.gptq.group_aware) {
    const int64_t width = c.problem.scheme.scales[0].block.cols;
    const auto sum = [&](int64_t group) {
      if ((group + 1) * width > n) return -1.0;
      double total = 0;
      for (int64_t j = group * width; j < (group + 1) * width; ++j)
        total += diagonal_of(j);
      return total;
    };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return sum(a / width) > sum(b / width);
    });
  }
  for (int64_t i = 0; i < n; ++i) damped[i * n + i] += c.problem.gptq.damping * mean;
  std::vector<double> free_inverse = inverse(damped, n);
  std::vector<double> w(rows * n);
  for (int64_t i = 0; i < rows * n; ++i) w[i] = c.weight.data_ptr<float>()[i];
  const std::vector<float> scales = expanded_scales(levels),
                           zeros = expanded_offsets(levels);
  const float lowest = code_lowest(c.problem.scheme),
              highest = code_highest(c.problem.scheme);
  std::vector<uint8_t> codes(rows * n);
  for (const int64_t j : order) {
    const double diagonal = free_inverse[j * n + j];
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = r * n + j;
      const float code =
          std::clamp(std::nearbyintf(static_cast<float>(w[at]) / scales[at]) + zeros[at],
                     lowest, highest);
      codes[at] = static_cast<uint8_t>(static_cast<int>(code));
      const double e = (w[at] - scales[at] * (code - zeros[at])) / diagonal;
      for (int64_t k = 0; k < n; ++k) w[r * n + k] -= e * free_inverse[j * n + k];
    }
    const std::vector<double> row(free_inverse.begin() + j * n,
                                  free_inverse.begin() + (j + 1) * n);
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t k = 0; k < n; ++k)
        free_inverse[r * n + k] -= row[r] * row[k] / diagonal;
    }
  }
  return codes;
}

struct Shape {
  int64_t rows, columns;
  const char* scheme;
  bool act_order;
};

class GptqPaper : public ::testing::TestWithParam<Shape> {};

TEST_P(GptqPaper, CodesEqualTheEquations) {
  const Shape shape = GetParam();
  Case c(shape.rows, correlated_inputs(3 * shape.columns, shape.columns, 11),
         shape.scheme, 12);
  c.problem.gptq.act_order = shape.act_order;
  c.problem.gptq.refine_sweeps = c.problem.gptq.refine_scales = 0;
  const SolvedLayer solved = solve_gptq(c.problem);
  EXPECT_EQ(solved.coded.codes, brute_force(c, solved.coded));
  EXPECT_EQ(solved.note, "");
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, GptqPaper,
    ::testing::Values(Shape{3, 12, "int4/r@f32", false},
                      Shape{5, 16, "int4/g8@f16", true},
                      Shape{33, 44, "int4/g16@f16",
                            true},  // a remainder group, a second chunk
                      Shape{7, 150, "uint4/g32@f16+z/g32@uint4", true},  // a second block
                      Shape{4, 150, "int3/g64@f32", false}));

TEST(Gptq, LateGroupsSeeTheWeightsAsTheSolveLeftThem) {
  Case c(6, correlated_inputs(200, 44, 3), "int4/g16@f16", 4);
  c.problem.gptq.act_order = false;
  c.problem.gptq.refine_sweeps = c.problem.gptq.refine_scales = 0;
  const SolvedLayer early = solve_gptq(c.problem);
  c.problem.gptq.static_groups = false;
  const SolvedLayer late = solve_gptq(c.problem);
  EXPECT_EQ(late.coded.codes, brute_force(c, late.coded));
  ASSERT_EQ(late.coded.scales[0].values.size(), 6u * 3u);
  // The first group of a row is the same, later ones are not.
  int same = 0, moved = 0;
  for (int64_t r = 0; r < 6; ++r) {
    EXPECT_EQ(early.coded.scales[0].values[r * 3], late.coded.scales[0].values[r * 3]);
    for (int64_t g = 1; g < 3; ++g) {
      const bool equal = early.coded.scales[0].values[r * 3 + g] ==
                         late.coded.scales[0].values[r * 3 + g];
      ++(equal ? same : moved);
    }
  }
  EXPECT_GT(moved, same);
}

TEST(Gptq, GroupAwareOrderSolvesGroupsAsAWhole) {
  // 44 columns: the group that is cut short comes last, whatever its diagonal.
  Case c(6, correlated_inputs(200, 44, 3), "int4/g16@f16", 4);
  c.problem.gptq.refine_sweeps = c.problem.gptq.refine_scales = 0;
  const SolvedLayer columns = solve_gptq(c.problem);
  c.problem.gptq.group_aware = true;
  const SolvedLayer groups = solve_gptq(c.problem);
  EXPECT_EQ(groups.coded.codes, brute_force(c, groups.coded));
  EXPECT_NE(groups.coded.codes, columns.coded.codes);
  c.problem.gptq.static_groups = false;
  const SolvedLayer late = solve_gptq(c.problem);
  EXPECT_EQ(late.coded.codes, brute_force(c, late.coded));
  EXPECT_NE(late.coded.scales, groups.coded.scales);
}

TEST(Gptq, BeatsRoundToNearestOnCorrelatedInputs) {
  Case c(24, correlated_inputs(1000, 172, 5), "int4/g32@f16",
         6);  // 172: a remainder group
  const double rtn = c.error(solve_rtn(c.problem)), gptq = c.error(solve_gptq(c.problem));
  EXPECT_LT(gptq, 0.5 * rtn);
  EXPECT_GT(gptq, 0.02 * rtn);
}

TEST(Gptq, RefiningOnlyLowersTheError) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Case c(16, correlated_inputs(500, 96, seed), "int3/g32@f16", seed + 100);
    c.problem.gptq.refine_sweeps = c.problem.gptq.refine_scales = 0;
    const double plain = c.error(solve_gptq(c.problem));
    c.problem.gptq.refine_sweeps = 20;
    const double refined = c.error(solve_gptq(c.problem));
    EXPECT_LT(refined, plain);
    EXPECT_GT(refined, 0.5 * plain);
    c.problem.gptq.refine_scales = 2;
    const SolvedLayer scaled = solve_gptq(c.problem);
    EXPECT_LT(c.error(scaled), refined);
    EXPECT_GT(c.error(scaled), 0.5 * refined);
    for (const float scale : scaled.coded.scales[0].values)
      EXPECT_EQ(scale, round_to_element(Element::f16, scale));
  }
}

TEST(Gptq, RaisesTheDampingUntilTheHessianCanBeFactored) {
  Case c(2, at::ones({31, 8}), "int4/r@f32", 1);
  c.problem.gptq.damping = 1e-18;
  c.problem.gptq.damping_attempts = 8;
  EXPECT_THAT(solve_gptq(c.problem).note, StartsWith("damping 1e-18 -> 1e-1"));
}

TEST(Gptq, SaysWhatToDoWhenNoDampingHelps) {
  Case c(2, at::ones({31, 8}), "int4/r@f32", 1);
  c.problem.node = "model.layers.3.mlp.down_proj";
  c.problem.gptq.damping = 1e-20;
  c.problem.gptq.damping_attempts = 2;
  try {
    solve_gptq(c.problem);
    FAIL() << "a singular Hessian was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::failed_precondition);
    EXPECT_STREQ(
        error.what(),
        "[gptq] model.layers.3.mlp.down_proj: Hessian not positive definite at damping "
        "1e-19; raise damping or give more than 31 calibration rows");
  }
}

TEST(Gptq, DeadColumnsAreRoundedToNearest) {
  at::Tensor x = correlated_inputs(200, 24, 8);
  x.select(1, 5).zero_();
  x.select(1, 17).zero_();
  Case c(9, x, "int4/r@f32", 9);
  const SolvedLayer solved = solve_gptq(c.problem);
  EXPECT_EQ(solved.note, "2 dead columns");
  CodedMatrix nearest = solved.coded;
  ASSERT_TRUE(quantize(c.problem.weight, nearest).ok());
  int moved = 0;
  for (int64_t r = 0; r < 9; ++r) {
    EXPECT_EQ(solved.coded.codes[r * 24 + 5], nearest.codes[r * 24 + 5]);
    EXPECT_EQ(solved.coded.codes[r * 24 + 17], nearest.codes[r * 24 + 17]);
    for (int64_t k = 0; k < 24; ++k) {
      moved += solved.coded.codes[r * 24 + k] != nearest.codes[r * 24 + k];
    }
  }
  EXPECT_GT(moved, 20);  // the others carry errors
}

TEST(Gptq, EveryKindOfCodeIsSolved) {
  const at::Tensor x = correlated_inputs(400, 64, 20);
  for (const char* scheme :
       {"nf4/g32@f16", "e2m1/g16@e4m3/t@f32", "uint4/g32@f16+m/g32@f16",
        "e4m3/b16x16@f32", "uint2/g16@f16+z/g16@uint2"}) {
    Case c(16, x, scheme, 21);
    const double rtn = c.error(solve_rtn(c.problem)),
                 gptq = c.error(solve_gptq(c.problem));
    EXPECT_LT(gptq, 0.9 * rtn) << scheme;
    EXPECT_GT(gptq, 0.0) << scheme;
  }
}

TEST(Gptq, SameBytesAtOneAndTwoThreads) {
  const int before = thread_count();
  std::vector<CodedMatrix> results;
  for (const int threads : {1, 2}) {
    set_thread_count(threads);
    const at::Tensor x = correlated_inputs(700, 200, 30);
    Case c(130, x, "int4/g64@f16", 31);
    c.inputs.accumulate(x * 0.5, x * 0.51);
    c.problem.rule.kind = ScaleRule::Kind::mse;
    results.push_back(solve_gptq(c.problem).coded);
  }
  set_thread_count(before);
  EXPECT_EQ(results[0], results[1]);
}

TEST(Gptq, DriftAimsAtTheFloatModelsOutputs) {
  const at::Tensor x = correlated_inputs(600, 48, 40);
  // What the float model gives: each column shrunk and leaning on its neighbour, as a
  // quantized prefix distorts them.
  const at::Tensor f = 1.1 * x + 0.2 * x.roll({1}, {1});
  Case c(20, x, "int4/g16@f16", 42);
  c.inputs = Hessian(48);
  c.inputs.accumulate(x, f);
  const auto distance = [&](const SolvedLayer& solved) {
    at::Tensor q = at::empty({20, 48});
    EXPECT_TRUE(
        dequantize(solved.coded, MatrixView<float>(q.data_ptr<float>(), 20, 48)).ok());
    return (at::mm(x, q.t()) - at::mm(f, c.weight.t())).square().mean().item<double>();
  };
  const double matched = distance(solve_gptq(c.problem));
  c.problem.gptq.match_float = false;
  EXPECT_LT(matched, 0.9 * distance(solve_gptq(c.problem)));
}

TEST(Gptq, NeedsInputs) {
  Case c(2, at::ones({3, 8}), "int4/r@f32", 1);
  c.problem.inputs = nullptr;
  try {
    solve_gptq(c.problem);
    FAIL() << "solved without inputs";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(),
                HasSubstr("[gptq] layer: needs calibration inputs; found none"));
  }
}

TEST(HessianSums, EqualTheDefinition) {
  const at::Tensor x = correlated_inputs(300, 150, 50), f = x + 1;
  Hessian inputs(150);
  inputs.accumulate(x.narrow(0, 0, 100), f.narrow(0, 0, 100));
  inputs.accumulate(x.narrow(0, 100, 200), f.narrow(0, 100, 200));
  const at::Tensor exact = x.to(at::kDouble);
  EXPECT_EQ(inputs.tokens(), 300);
  EXPECT_TRUE(at::allclose(inputs.matrix(), at::mm(exact.t(), exact), 1e-5, 1e-3));
  EXPECT_TRUE(at::equal(inputs.matrix(), inputs.matrix().t()));
  const at::Tensor drift = at::mm(at::ones({150, 300}, at::kDouble), exact);
  EXPECT_TRUE(at::allclose(inputs.drift(), drift, 1e-4, 1e-2));
}

TEST(Methods, AreFoundByName) {
  ASSERT_NE(find_method("gptq"), nullptr);
  EXPECT_TRUE(find_method("gptq")->needs_inputs);
  EXPECT_FALSE(find_method("rtn")->needs_inputs);
  EXPECT_EQ(find_method("qptg"), nullptr);
}

TEST(Rtn, NamesTheLayerAndTheNumber) {
  Case c(2, at::ones({3, 8}), "int4/r@f32", 1);
  c.weight[1][3] = std::nan("");
  try {
    solve_rtn(c.problem);
    FAIL() << "a NaN was quantized";
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::out_of_range);
    EXPECT_THAT(error.what(), StartsWith("[rtn] layer: "));
    EXPECT_THAT(error.what(), HasSubstr("row 1, column 3"));
  }
}

}  // namespace
}  // namespace nibble
