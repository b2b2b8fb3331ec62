// Ops of nets over signals: moves and the LSTM's step against their formulas, and a net
// with a state of its own through the executor, row by row and as a batch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/base/splitmix64.h"
#include "kernels/ops/elementwise/elementwise.h"
#include "kernels/ops/lstm/lstm.h"
#include "kernels/ops/reorder/reorder.h"
#include "kernels/program/shape.h"
#include "kernels/runtime/executor.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<float> random_floats(int64_t count, uint64_t seed, double limit = 1) {
  SplitMix64 random(seed);
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(static_cast<float>(limit * (2 * random.uniform() - 1)));
  return values;
}

TEST(SignalOps, TransposeFollowsItsPermutation) {
  const std::vector<int64_t> shape = {2, 3, 4, 5};
  const std::vector<float> x = random_floats(120, 1);
  std::vector<int64_t> perm = {0, 1, 2, 3};
  do {
    std::vector<float> y(120);
    transpose(x.data(), shape, perm, y.data());
    std::vector<int64_t> to;
    for (const int64_t axis : perm) to.push_back(shape[static_cast<size_t>(axis)]);
    for (int64_t flat = 0; flat < 120; ++flat) {
      int64_t rest = flat, index[4] = {};
      for (size_t a = 4; a-- > 0; rest /= to[a]) index[perm[a]] = rest % to[a];
      const int64_t from = ((index[0] * 3 + index[1]) * 4 + index[2]) * 5 + index[3];
      ASSERT_EQ(y[static_cast<size_t>(flat)], x[static_cast<size_t>(from)]);
    }
  } while (std::next_permutation(perm.begin(), perm.end()));
}

TEST(SignalOps, SlicesAndReflections) {
  const std::vector<float> x = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  std::vector<float> y(4);
  take_slice({.outer = 2, .size = 5, .inner = 1, .start = 1, .step = 3, .count = 2},
             x.data(), y.data());
  EXPECT_THAT(y, ElementsAre(1, 4, 6, 9));
  take_slice({.outer = 1, .size = 5, .inner = 2, .start = 2, .step = 1, .count = 2},
             x.data(), y.data());
  EXPECT_THAT(y, ElementsAre(4, 5, 6, 7));
  std::vector<float> padded(16);
  reflect_pad(x.data(), 2, 5, 1, 2, padded.data());
  EXPECT_THAT(padded, ElementsAre(1, 0, 1, 2, 3, 4, 3, 2, 6, 5, 6, 7, 8, 9, 8, 7));
}

TEST(SignalOps, ElementwiseAgainstDouble) {
  const std::vector<float> a = random_floats(333, 2, 20), b = random_floats(333, 3, 3);
  std::vector<float> product(333), root(333), sigma(333), squares(333);
  mul(a.data(), b.data(), 333, product.data());
  mul(a.data(), a.data(), 333, squares.data());
  square_root(squares.data(), 333, root.data());
  sigmoid(a.data(), 333, sigma.data());
  for (size_t i = 0; i < 333; ++i) {
    EXPECT_EQ(product[i], a[i] * b[i]);
    EXPECT_NEAR(root[i], std::abs(a[i]), 1e-6 * std::abs(a[i]));
    EXPECT_EQ(sigma[i],
              static_cast<float>(1 / (1 + std::exp(-static_cast<double>(a[i])))));
  }
}

TEST(SignalOps, OneLstmStepByItsFormula) {
  constexpr int64_t kHidden = 7;
  const std::vector<float> gates = random_floats(4 * kHidden, 4, 3);
  std::vector<float> c = random_floats(kHidden, 5), h(kHidden);
  const std::vector<float> before = c;
  lstm_step(gates.data(), kHidden, c.data(), h.data());
  const auto sigma = [](double x) { return 1 / (1 + std::exp(-x)); };
  for (size_t k = 0; k < kHidden; ++k) {
    const double memory =
        sigma(gates[2 * kHidden + k]) * before[k] +
        sigma(gates[k]) * std::tanh(static_cast<double>(gates[3 * kHidden + k]));
    EXPECT_NEAR(c[k], memory, 1e-6);
    EXPECT_NEAR(h[k], sigma(gates[kHidden + k]) * std::tanh(memory), 1e-6);
  }
}

constexpr int64_t kSteps = 3, kInputs = 5, kHidden = 4;

// x [n, kSteps, kInputs] and state [2, n, kHidden] (h and c) -> y [n, kHidden], the last
// h's sigmoid, and next [2, n, kHidden].
Artifact recurrent_net() {
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "Recurrent";
  program.inputs = {{"x", DType::f32, {"batch", "3", "5"}},
                    {"state", DType::f32, {"2", "batch", "4"}},
                    {"rate", DType::i64, {}}};
  program.outputs = {{"y", DType::f32, {"batch", "4"}},
                     {"next", DType::f32, {"2", "batch", "4"}}};
  const auto add = [&](const char* op, const char* name, std::vector<std::string> inputs,
                       std::map<std::string, Attribute> attributes) {
    program.nodes.push_back(
        {op, name, 0, std::move(inputs), {name}, {}, std::move(attributes)});
  };
  using Integers = std::vector<int64_t>;
  const auto range = [](int64_t start, int64_t end) {
    return std::map<std::string, Attribute>{
        {"axis", int64_t{1}}, {"start", start}, {"end", end}};
  };
  add("transpose", "states", {"state"}, {{"perm", Integers{1, 0, 2}}});
  add("slice", "h0", {"states"}, range(0, 1));
  add("reshape", "h", {"h0"}, {{"shape", Integers{kHidden}}});
  add("slice", "c0", {"states"}, range(1, 2));
  add("reshape", "c", {"c0"}, {{"shape", Integers{kHidden}}});
  add("lstm", "lstm", {"x", "h", "c"}, {{"hidden_size", kHidden}});
  program.nodes.back().parameters = {
      {"weight_ih", "w_ih"}, {"weight_hh", "w_hh"}, {"bias", "b"}};
  add("slice", "last", {"lstm"}, range(kSteps - 1, kSteps));
  add("reshape", "last_h", {"last"}, {{"shape", Integers{kHidden}}});
  add("sigmoid", "y", {"last_h"}, {});
  add("slice", "both", {"lstm"}, range(kSteps - 1, kSteps + 1));
  add("transpose", "next", {"both"}, {{"perm", Integers{1, 0, 2}}});
  artifact.tensors["w_ih"] = make_tensor({4 * kHidden, kInputs}, random_floats(80, 11));
  artifact.tensors["w_hh"] = make_tensor({4 * kHidden, kHidden}, random_floats(64, 12));
  artifact.tensors["b"] = make_tensor({4 * kHidden}, random_floats(16, 13));
  return artifact;
}

Executor executor_of(const Artifact& artifact) {
  Result<Executor> made =
      Executor::create(std::make_shared<const Artifact>(artifact), {});
  if (!made.ok()) throw std::runtime_error(made.status().message());
  return std::move(made).value();
}

std::vector<NetOutput> run(Executor& net, const std::vector<float>& x,
                           const std::vector<float>& state) {
  const auto n = static_cast<int64_t>(x.size()) / (kSteps * kInputs);
  const std::vector<NetInput> inputs = {{"x", {n, kSteps, kInputs}, x},
                                        {"state", {2, n, kHidden}, state}};
  auto outputs = net.forward_values(inputs);
  if (!outputs.ok()) throw std::runtime_error(outputs.status().message());
  return std::move(outputs).value();
}

// The same in plain loops, one row.
void plain(const Artifact& artifact, const float* x, std::vector<double>& h,
           std::vector<double>& c) {
  const auto floats = [&](const char* name) {
    return *to_float(artifact.tensors.at(name));
  };
  const std::vector<float> over_x = floats("w_ih"), over_h = floats("w_hh"),
                           bias = floats("b");
  const auto sigma = [](double v) { return 1 / (1 + std::exp(-v)); };
  for (int64_t t = 0; t < kSteps; ++t) {
    std::vector<double> a;
    for (int64_t g = 0; g < 4 * kHidden; ++g) {
      double sum = bias[static_cast<size_t>(g)];
      for (int64_t k = 0; k < kInputs; ++k)
        sum += over_x[static_cast<size_t>(g * kInputs + k)] * x[t * kInputs + k];
      for (int64_t k = 0; k < kHidden; ++k)
        sum += over_h[static_cast<size_t>(g * kHidden + k)] * h[static_cast<size_t>(k)];
      a.push_back(sum);
    }
    for (size_t k = 0; k < kHidden; ++k) {
      c[k] =
          sigma(a[2 * kHidden + k]) * c[k] + sigma(a[k]) * std::tanh(a[3 * kHidden + k]);
      h[k] = sigma(a[kHidden + k]) * std::tanh(c[k]);
    }
  }
}

TEST(SignalOps, ARecurrentNetCarriesItsState) {
  const Artifact artifact = recurrent_net();
  ASSERT_TRUE(check_program(artifact.program).ok());
  Executor net = executor_of(artifact);
  std::vector<double> h(kHidden, 0), c(kHidden, 0);
  std::vector<float> state(2 * kHidden, 0);
  for (uint64_t chunk = 0; chunk < 5; ++chunk) {
    const std::vector<float> x = random_floats(kSteps * kInputs, 20 + chunk);
    const std::vector<NetOutput> made = run(net, x, state);
    plain(artifact, x.data(), h, c);
    EXPECT_EQ(made[0].name, "y");
    EXPECT_THAT(made[0].shape, ElementsAre(1, kHidden));
    EXPECT_THAT(made[1].shape, ElementsAre(2, 1, kHidden));
    for (size_t k = 0; k < kHidden; ++k) {
      EXPECT_NEAR(made[0].values[k], 1 / (1 + std::exp(-h[k])), 2e-6);
      EXPECT_NEAR(made[1].values[k], h[k], 2e-6);
      EXPECT_NEAR(made[1].values[kHidden + k], c[k], 2e-6);
    }
    state = made[1].values;
  }
}

// The batch lies at another axis of the state than of x.
TEST(SignalOps, ABatchIsItsRows) {
  Executor net = executor_of(recurrent_net());
  constexpr int64_t kRows = 3;
  const std::vector<float> x = random_floats(kRows * kSteps * kInputs, 31);
  const std::vector<float> state = random_floats(2 * kRows * kHidden, 32);
  const std::vector<NetOutput> all = run(net, x, state);
  for (int64_t r = 0; r < kRows; ++r) {
    const std::vector<float> row(x.begin() + r * kSteps * kInputs,
                                 x.begin() + (r + 1) * kSteps * kInputs);
    std::vector<float> mine;
    for (int64_t part = 0; part < 2; ++part) {
      const auto from = state.begin() + (part * kRows + r) * kHidden;
      mine.insert(mine.end(), from, from + kHidden);
    }
    const std::vector<NetOutput> one = run(net, row, mine);
    for (int64_t k = 0; k < kHidden; ++k) {
      EXPECT_NEAR(one[0].values[static_cast<size_t>(k)],
                  all[0].values[static_cast<size_t>(r * kHidden + k)], 1e-6);
      for (int64_t part = 0; part < 2; ++part) {
        EXPECT_NEAR(one[1].values[static_cast<size_t>(part * kHidden + k)],
                    all[1].values[static_cast<size_t>((part * kRows + r) * kHidden + k)],
                    1e-6);
      }
    }
  }
}

TEST(SignalOps, InputsThatDoNotFitAreRefused) {
  Executor net = executor_of(recurrent_net());
  const std::vector<float> x(2 * kSteps * kInputs), state(2 * kHidden);
  const NetInput first = {"x", {1, kSteps, kInputs}, {x.data(), kSteps * kInputs}};
  const NetInput second = {"state", {2, 1, kHidden}, state};
  const auto message = [&](std::vector<NetInput> inputs) {
    const auto made = net.forward_values(inputs);
    EXPECT_EQ(made.status().code(), StatusCode::invalid_argument);
    return made.status().message();
  };
  EXPECT_TRUE(net.forward_values(std::vector<NetInput>{first, second}).ok());
  EXPECT_THAT(message({first}),
              HasSubstr("[runtime] state: this input, [2, -1, 4], was required"));
  EXPECT_THAT(
      message({first, second, {"other", {}, {}}}),
      HasSubstr(
          "[runtime] other: an input of the program (x, state, rate) was required"));
  EXPECT_THAT(message({first, second, second}), HasSubstr("a second one"));
  EXPECT_THAT(
      message({{"x", {2, kSteps, kInputs}, x}, second}),
      HasSubstr("[runtime] state: one input [2, -1, 4] was required, -1 being the batch, "
                "here 2; found [2, 1, 4] with 8 values"));
  EXPECT_THAT(message({{"x", {1, kSteps, kInputs}, x}, second}),
              HasSubstr("with 30 values"));
  std::vector<float> y(kHidden);
  const std::vector<int64_t> shape = {1, kSteps, kInputs};
  EXPECT_THAT(
      net.forward_images(first.values, shape, MatrixView<float>(y.data(), 1, kHidden))
          .message(),
      HasSubstr("a net of one input [n, ..] and one output was required; this one has 2 "
                "and 2; use forward_values"));
}

TEST(SignalOps, ShapesAreChecked) {
  struct Case {
    const char* op;
    std::map<std::string, Attribute> attributes;
    const char* message;
  };
  using Integers = std::vector<int64_t>;
  const std::vector<Case> cases = {
      {"reshape",
       {{"shape", Integers{4, 4}}},
       "reshape reads [n, ..] and keeps its values"},
      {"transpose",
       {{"perm", Integers{0, 1, 1}}},
       "perm must order the 3 axes; found [0, 1, 1]"},
      {"slice",
       {{"axis", int64_t{1}}, {"start", int64_t{2}}, {"end", int64_t{4}}},
       "slice takes start to end, by step, of an axis of known size; found 2 to 4 by 1 "
       "of axis 1"},
      {"slice",
       {{"axis", int64_t{0}}, {"start", int64_t{0}}, {"end", int64_t{1}}},
       "of axis 0 of [-1, 3, 5]"},
      {"reflect_pad",
       {{"before", int64_t{0}}, {"after", int64_t{5}}},
       "a padding by reflection must be shorter than the last axis; found 0 and 5"}};
  for (const Case& row : cases) {
    Program program;
    program.inputs = {{"x", DType::f32, {"batch", "3", "5"}}};
    program.nodes = {{row.op, "node", 0, {"x"}, {"y"}, {}, row.attributes}};
    const Status status = check_shapes(program, {});
    EXPECT_EQ(status.code(), StatusCode::invalid_argument) << row.op;
    EXPECT_THAT(status.message(), HasSubstr(row.message));
  }
  Artifact artifact = recurrent_net();
  const auto shapes = [&] {
    Shapes given;
    for (const auto& [name, tensor] : artifact.tensors) given[name] = tensor.shape;
    return check_shapes(artifact.program, given).message();
  };
  EXPECT_EQ(shapes(), "");
  const Result<Shapes> derived = parameter_shapes(artifact.program);
  ASSERT_TRUE(derived.ok()) << derived.status().message();
  EXPECT_THAT(derived->at("w_hh"), ElementsAre(4 * kHidden, kHidden));
  artifact.program.nodes[5].inputs.pop_back();
  EXPECT_THAT(shapes(),
              HasSubstr("[program] lstm: lstm reads x, or x, h and c; found 2 values"));
}

}  // namespace
}  // namespace nibble
