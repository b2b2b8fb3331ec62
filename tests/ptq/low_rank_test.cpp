// Low-rank compensation: the solution against Eckart and Young's bound and against plain
// SVD, the whole of calibrate and freeze with it, and what it refuses. And the ledger's
// errors "before": those of rounding to nearest.
#include "ptq/methods/low_rank.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/base/parallel.h"
#include "kernels/runtime/executor.h"
#include "tests/ptq/calibration_cases.h"

namespace nibble {
namespace {

using testing::decoder_plan;
using testing::distance;
using ::testing::HasSubstr;
using testing::sequences;
using ::testing::StartsWith;

at::Tensor normal(int64_t rows, int64_t cols, uint64_t seed) {
  return at::randn({rows, cols}, at::detail::createCPUGenerator(seed), at::kFloat);
}

// Inputs that live in few directions, and a little everywhere.
at::Tensor correlated_inputs(int64_t tokens, int64_t columns, uint64_t seed) {
  return at::mm(normal(tokens, 3, seed), normal(3, columns, seed + 1)) +
         0.05 * normal(tokens, columns, seed + 2);
}

struct Case {
  at::Tensor weight, x;
  Hessian inputs;
  LayerProblem problem;
  SolvedLayer solved;

  Case(int64_t rows, int64_t cols, uint64_t seed)
      : weight(normal(rows, cols, seed)),
        x(correlated_inputs(64, cols, seed + 10)),
        inputs(cols) {
    inputs.accumulate(x);
    problem.node = "layer";
    problem.weight = {weight.data_ptr<float>(), rows, cols};
    problem.scheme = parse_scheme("int2/r@f32").value();
    problem.inputs = &inputs;
    solved = solve_rtn(problem);
  }

  at::Tensor missing() const {
    const std::vector<float> values = dequantized(solved.coded);
    return (weight - at::tensor(values).reshape(weight.sizes())).to(at::kDouble);
  }
  // |(E - B A) X^T|^2 and |E - B A|^2, by the samples themselves.
  std::pair<double, double> left(const LowRankFactors& factors) const {
    at::Tensor values = at::zeros(weight.sizes(), at::kFloat);
    add_factors(factors, {values.data_ptr<float>(), weight.size(0), weight.size(1)});
    const at::Tensor rest = missing() - values.to(at::kDouble);
    return {at::mm(rest, x.to(at::kDouble).t()).square().sum().item<double>(),
            rest.square().sum().item<double>()};
  }
};

// Eckart and Young: no matrix of rank r comes nearer than the singular values behind the
// r-th. Of the outputs' error that is a statement about E X^T.
TEST(LowRank, LeavesWhatNoMatrixOfItsRankCanTake) {
  for (const auto& [rows, cols] : {std::pair{9, 14}, std::pair{14, 9}}) {
    for (const int64_t rank : {1, 2, 5}) {
      Case c(rows, cols, 3);
      const at::Tensor outputs = at::mm(c.missing(), c.x.to(at::kDouble).t());
      const at::Tensor s = at::linalg_svdvals(outputs).square();
      const double least = s.narrow(0, rank, s.size(0) - rank).sum().item<double>();
      const double whole = s.sum().item<double>();
      const LowRankFactors found = low_rank_factors(c.problem, c.solved.coded, rank);
      EXPECT_EQ(found.a.shape, (std::vector<int64_t>{rank, cols}));
      EXPECT_EQ(found.b.shape, (std::vector<int64_t>{rows, rank}));
      const double left = c.left(found).first;
      EXPECT_GE(left, least * (1 - 1e-6));
      EXPECT_LT(left, least + 1e-4 * whole) << rows << "x" << cols << " rank " << rank;

      // Without inputs: of E itself.
      const at::Tensor t = at::linalg_svdvals(c.missing()).square();
      LayerProblem blind = c.problem;
      blind.inputs = nullptr;
      const LowRankFactors plain = low_rank_factors(blind, c.solved.coded, rank);
      const double of_weight = t.narrow(0, rank, t.size(0) - rank).sum().item<double>();
      EXPECT_NEAR(c.left(plain).second, of_weight, 1e-4 * t.sum().item<double>());
      // Each is the better one at what it minimises, and by far at the outputs.
      EXPECT_LT(left, 0.8 * c.left(plain).first);
      EXPECT_LT(c.left(plain).second, c.left(found).second);
    }
  }
}

// One factor each, all pairs of a grid: nothing is better.
TEST(LowRank, EqualsASearchOverAllMatricesOfRankOne) {
  Case c(2, 2, 8);
  const double found = c.left(low_rank_factors(c.problem, c.solved.coded, 1)).first;
  const at::Tensor e = c.missing(), h = c.inputs.matrix();
  // b = (cos, sin) of an angle; the best row for it by calculus is b^T E.
  double best = 1e300;
  for (int i = 0; i < 20000; ++i) {
    const double angle = M_PI * i / 20000;
    const at::Tensor b = at::tensor({std::cos(angle), std::sin(angle)}, at::kDouble);
    const at::Tensor rest = e - at::outer(b, at::mv(e.t(), b));
    best = std::min(best, (at::mm(rest, h) * rest).sum().item<double>());
  }
  const double whole = (at::mm(e, h) * e).sum().item<double>();
  EXPECT_NEAR(found, best, 1e-4 * whole);
  EXPECT_LT(best, 0.5 * whole);
}

TEST(LowRank, NothingIsAddedWhereNothingIsMissing) {
  Case c(6, 4, 5);
  const std::vector<float> values = dequantized(c.solved.coded);
  c.problem.weight = {values.data(), 6, 4};
  at::Tensor sum = at::zeros({6, 4}, at::kFloat);
  add_factors(low_rank_factors(c.problem, c.solved.coded, 2),
              {sum.data_ptr<float>(), 6, 4});
  EXPECT_EQ(sum.abs().max().item<float>(), 0);
}

Plan low_rank_plan(const Program& program, const char* scheme, const char* method,
                   int64_t rank) {
  Plan plan = decoder_plan(program, scheme, method);
  for (LayerPlan& layer : plan.layers) {
    if (takes_low_rank(*program.find(layer.node))) layer.rank = rank;
  }
  return plan;
}

const char* scheme_of(const std::string& method) {
  return method == "hqq" ? "uint3/g8@f16+m/g8@f16" : "int3/g8@f16";
}

class LowRankMethods : public ::testing::TestWithParam<const char*> {};

TEST_P(LowRankMethods, ComeNearerToTheFloatModel) {
  double without = 0, with = 0, more = 0;
  for (const uint64_t seed : {1, 2}) {
    const auto model = std::make_shared<Artifact>(testing::small_llama(seed));
    const CalibrationData data = sequences(40, 24, seed), other = sequences(10, 24, 77);
    const auto solved = [&](int64_t rank) {
      Plan plan = low_rank_plan(model->program, scheme_of(GetParam()), GetParam(), rank);
      plan.autoround.iterations = 5;
      return distance(*model, calibrate(model, plan, data, {}), other);
    };
    without += solved(0);
    with += solved(2);
    more += solved(6);
  }
  EXPECT_LT(with, 0.95 * without);
  EXPECT_LT(more, 0.8 * with);
  EXPECT_GT(more, 0.001 * without);
}
INSTANTIATE_TEST_SUITE_P(Each, LowRankMethods,
                         ::testing::Values("rtn", "gptq", "imatrix", "awq", "hqq",
                                           "autoround"),
                         [](const auto& info) { return std::string(info.param); });

TEST(LowRank, StandsBesideThePackedWeightsAndInTheLedger) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(1));
  const Plan plan = low_rank_plan(model->program, "int3/g8@f16", "rtn", 4);
  const Calibrated calibrated = calibrate(model, plan, sequences(40, 24, 2), {});
  EXPECT_EQ(calibrated.low_rank.size(), 14u);
  const Artifact frozen = freeze(calibrated, {});
  ASSERT_TRUE(check_artifact(frozen).ok()) << check_artifact(frozen).message();
  EXPECT_EQ(frozen.program.nodes.size(), model->program.nodes.size() + 3 * 14);
  const char* node = "model.layers.1.mlp.down_proj";
  const LedgerEntry* factor = frozen.ledger.find(cat(node, ".lora_A.weight"));
  ASSERT_NE(factor, nullptr);
  EXPECT_EQ(factor->scheme, "bf16");
  EXPECT_EQ(factor->method, "low_rank");
  const Tensor& a = frozen.tensors.at(cat(node, ".lora_A.weight"));
  EXPECT_EQ(factor->bits, static_cast<double>(a.numel() * 16));
  const LedgerEntry* layer = frozen.ledger.find(cat(node, ".weight"));
  EXPECT_EQ(layer->method, "rtn");
  EXPECT_THAT(layer->note, StartsWith("rank 4: output error "));
  EXPECT_GT(layer->tokens, 0);
  // Rounded to nearest it is: what is better is what the factors give back.
  EXPECT_LT(layer->output_error, 0.8 * layer->rtn_output_error);

  // What runs is what was calibrated: the layer's output is W x + B (A x).
  Result<Executor> executor = Executor::create(std::make_shared<Artifact>(frozen), {});
  ASSERT_TRUE(executor.ok()) << executor.status().message();
  const double simulated = distance(*model, calibrated, sequences(5, 24, 9));
  const at::NoGradGuard no_gradients;
  ProgramModule before(*model), after(frozen);
  before->eval();
  after->eval();
  double sum = 0;
  const CalibrationData data = sequences(5, 24, 9);
  for (const std::vector<int32_t>& ids : data.sequences) {
    const at::Tensor input = at::tensor(ids).to(at::kLong).unsqueeze(0);
    sum +=
        (before->forward(input) - after->forward(input)).square().mean().item<double>();
  }
  EXPECT_NEAR(sum / 5, simulated, 1e-4 * simulated);
}

TEST(LowRank, SameFactorsAtOneAndTwoThreads) {
  const int before = thread_count();
  const auto model = std::make_shared<Artifact>(testing::small_llama(6));
  for (const char* method : {"gptq", "autoround"}) {
    const Plan plan = low_rank_plan(model->program, "int4/g8@f16", method, 3);
    std::vector<Calibrated> results;
    for (const int threads : {1, 2}) {
      set_thread_count(threads);
      results.push_back(calibrate(model, plan, sequences(40, 24, 7), {}));
    }
    set_thread_count(before);
    EXPECT_EQ(results[0].weights, results[1].weights);
    ASSERT_EQ(results[0].low_rank.size(), 14u);
    for (const auto& [tensor, factors] : results[0].low_rank) {
      const LowRankFactors& other = results[1].low_rank.at(tensor);
      EXPECT_EQ(factors.a.bytes.text(), other.a.bytes.text()) << tensor;
      EXPECT_EQ(factors.b.bytes.text(), other.b.bytes.text()) << tensor;
    }
    const Calibrated::Account& account =
        results[0].accounts.at("model.layers.0.mlp.up_proj.weight");
    EXPECT_THAT(account.note, HasSubstr("rank 3: output error "));
    EXPECT_GT(account.output_error, 0);
  }
}

TEST(LowRank, OfWeightsAloneNeedsNoData) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(1));
  Plan plan = low_rank_plan(model->program, "int3/g8@f16", "rtn", 4);
  plan.low_rank_on_outputs = false;
  const Calibrated calibrated = calibrate(model, plan, {}, {});
  const Calibrated::Account& account =
      calibrated.accounts.at("model.layers.0.mlp.up_proj.weight");
  EXPECT_THAT(account.note, StartsWith("rank 4: weight error "));
  EXPECT_LT(account.error, 0.8 * account.rtn_error);
  EXPECT_EQ(account.output_error, -1);
}

std::string failure_of(const Artifact& model, const Plan& plan,
                       const CalibrationData& data) {
  try {
    calibrate(std::make_shared<Artifact>(model), plan, data, {});
  } catch (const Error& error) {
    return error.what();
  }
  return "calibrate accepted it";
}

TEST(LowRank, SaysWhereItCannotStand) {
  const Artifact model = testing::small_llama(1);
  const CalibrationData data = sequences(40, 24, 2);
  const Plan good = low_rank_plan(model.program, "int4/g8@f16", "rtn", 4);
  const auto edited = [&](const auto& edit) {
    Plan plan = good;
    edit(plan);
    return failure_of(model, plan, data);
  };
  const auto layer = [](Plan& plan, const std::string& node) -> LayerPlan& {
    return *std::find_if(plan.layers.begin(), plan.layers.end(),
                         [&](const LayerPlan& each) { return each.node == node; });
  };
  EXPECT_THAT(failure_of(model, good, {}),
              StartsWith("[calibrate] model.layers.0.self_attn.q_proj: low-rank "
                         "compensation of outputs needs calibration data"));
  EXPECT_EQ(
      edited(
          [&](Plan& plan) { layer(plan, "model.layers.0.self_attn.q_proj").rank = 17; }),
      "[calibrate] model.layers.0.self_attn.q_proj: low-rank compensation of a rank "
      "of at most 16 is required, its weight's; found 17");
  EXPECT_THAT(edited([&](Plan& plan) {
                LayerPlan& first = layer(plan, "model.embed_tokens");
                first.scheme.weight = parse_scheme("int8n/r@f32").value();
                first.method = "rtn";
                first.rank = 4;
              }),
              HasSubstr("stands beside a quantized linear layer of a block; found "
                        "embedding model.embed_tokens; set its rank to 0"));
  EXPECT_THAT(edited([&](Plan& plan) {
                LayerPlan& q = layer(plan, "model.layers.0.self_attn.q_proj");
                q.method = "float";
                q.reason = "so";
                q.scheme.weight = {};
              }),
              HasSubstr("found one that stays float"));
  EXPECT_THAT(edited([&](Plan& plan) {
                plan.mixed.schemes = {parse_scheme("int4/g8@f16").value()};
              }),
              HasSubstr("found mixed precision, whose budget knows no factors"));
  EXPECT_THAT(edited([&](Plan& plan) {
                layer(plan, "model.layers.0.self_attn.q_proj").scheme.input =
                    ActivationScheme{.scheme = parse_scheme("int8/t@f32").value(),
                                     .scale = 1};
              }),
              HasSubstr("found static activations, whose layers read codes"));
}

// The ledger's "before" is what the recipe would have got from rtn.
TEST(Ledger, SaysWhatRoundingToNearestWouldHaveCost) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(1));
  const CalibrationData data = sequences(40, 24, 2);
  const char* first = "model.layers.0.self_attn.q_proj.weight";
  for (const char* method : {"gptq", "imatrix", "awq", "hqq", "autoround"}) {
    const Artifact nearest = freeze(
        calibrate(model, decoder_plan(model->program, scheme_of(method), "rtn"), {}, {}),
        {});
    EXPECT_EQ(nearest.ledger.find(first)->rtn_error, nearest.ledger.find(first)->error);
    EXPECT_EQ(nearest.ledger.find(first)->rtn_output_error, -1);
    Plan plan = decoder_plan(model->program, scheme_of(method), method);
    plan.autoround.iterations = 5;
    const Artifact frozen = freeze(calibrate(model, plan, data, {}), {});
    for (const LedgerEntry& entry : nearest.ledger.entries) {
      const LedgerEntry* mine = frozen.ledger.find(entry.tensor);
      if (entry.method == "float") {
        EXPECT_EQ(mine->rtn_error, -1);
      } else {
        EXPECT_NEAR(mine->rtn_error, entry.error, 1e-12) << method << entry.tensor;
        EXPECT_EQ(mine->rtn_output_error > 0, method != std::string("hqq"));
      }
    }
    if (method == std::string("gptq")) {
      // The first layer's inputs are the float model's: GPTQ's gain shows.
      const LedgerEntry* mine = frozen.ledger.find(first);
      EXPECT_LT(mine->output_error, 0.8 * mine->rtn_output_error);
    }
  }
}

}  // namespace
}  // namespace nibble
