// Calibration that streams: layers to disk as they come, activations on disk, shards.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/base/parallel.h"
#include "ptq/calibration/artifact_sink.h"
#include "ptq/calibration/pooled_allocator.h"
#include "ptq/calibration/sharded_hessian.h"
#include "ptq/calibration/spill_file.h"
#include "ptq/error.h"
#include "ptq/methods/inverse_factor.h"
#include "ptq/stream.h"
#include "tests/kernels/temporary_directory.h"
#include "tests/ptq/small_models.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

Plan gptq_plan(const Program& program, const char* embedding = nullptr) {
  Plan plan;
  plan.calibration_sequences = 32;
  plan.calibration_length = 20;
  for (const Node& node : program.nodes) {
    if (!find_op(node.op)->is_layer || plan.find(node.parameter("weight"))) continue;
    LayerPlan layer;
    layer.node = node.name;
    layer.tensor = node.parameter("weight");
    layer.method = node.op == "linear" ? "gptq" : "float";
    layer.reason = node.op == "linear" ? "" : "embedding kept float by the recipe";
    if (node.op == "linear") layer.scheme.weight = parse_scheme("int4/g8@f16").value();
    if (node.op == "embedding" && embedding != nullptr) {
      layer.method = "rtn";
      layer.reason = "";
      layer.scheme.weight = parse_scheme(embedding).value();
    }
    plan.layers.push_back(layer);
  }
  return plan;
}

CalibrationData sequences(int64_t count, int64_t length) {
  at::Generator generator = at::detail::createCPUGenerator(5);
  CalibrationData data;
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor ids = at::randint(0, 23, {length - i % 3}, generator, at::kInt);
    data.sequences.emplace_back(ids.data_ptr<int32_t>(),
                                ids.data_ptr<int32_t>() + ids.numel());
  }
  data.description = "random ids";
  return data;
}

TEST(Streaming, IsForPlansThatRoundOrSolveRows) {
  const Artifact model = testing::small_llama(1);
  Plan plan = gptq_plan(model.program);
  EXPECT_TRUE(can_stream(plan, model.program));
  plan.activations["model.norm"] = {};
  EXPECT_FALSE(can_stream(plan, model.program));
  plan.activations.clear();
  plan.layers[1].scheme.input = ActivationScheme{.scheme = {}, .dynamic = true};
  EXPECT_FALSE(can_stream(plan, model.program));  // its method would look at them
  plan.layers[1].method = "rtn";
  EXPECT_TRUE(can_stream(plan, model.program));
}

// 32 sequences: a shard is a round, so that calibrate's sums are the same to the bit.
TEST(Streaming, TheArtifactIsTheOneFromMemory) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(1));
  const Plan plan = gptq_plan(model->program, "int8n/r@f32");
  const CalibrationData data = sequences(32, 20);
  const Artifact whole = freeze(calibrate(model, plan, data, {}), {});
  for (const bool spills : {false, true}) {
    TemporaryDirectory directory;
    const auto work = directory.path() / "work";
    ArtifactWriter writer =
        ArtifactWriter::resume(work, "f", outline_of(plan, *model)).value();
    ArtifactSink sink(*model, writer);
    std::vector<BlockDone> blocks;
    const Calibrated calibrated = calibrate_into(
        sink, model, plan, data,
        {.block_done = [&](const BlockDone& done) { blocks.push_back(done); },
         .spill = spills ? directory.path() : std::filesystem::path()});
    const Artifact frozen = freeze(calibrated, {}, writer);
    ASSERT_EQ(frozen.packed.size(), whole.packed.size());
    for (const auto& [name, packed] : whole.packed) {
      EXPECT_EQ(frozen.packed.at(name).codes.text(), packed.codes.text()) << name;
      EXPECT_EQ(frozen.packed.at(name).scales[0].values.text(),
                packed.scales[0].values.text())
          << name;
    }
    EXPECT_EQ(frozen.ledger, whole.ledger);
    EXPECT_TRUE(check_artifact(frozen).ok());
    ASSERT_EQ(blocks.size(), 3u);
    EXPECT_EQ(blocks[0].block, kFirstBlock);  // the embedding, rounded
    EXPECT_EQ(blocks[0].layers, 1);
    EXPECT_EQ(blocks[2].block, 1);
    EXPECT_EQ(blocks[2].layers, 7);
    EXPECT_EQ(blocks[2].done, blocks[2].total);
    EXPECT_GT(blocks[1].output_error, 0);
  }
}

// A run that died after its first block: what it left is not solved again, and the rest
// comes out as if it had lived.
TEST(Streaming, ResumesToTheSameCodes) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(2));
  const Plan plan = gptq_plan(model->program);
  const CalibrationData data = sequences(32, 20);
  const Artifact whole = freeze(calibrate(model, plan, data, {}), {});
  TemporaryDirectory directory;
  const auto work = directory.path() / "work";
  const auto solve = [&](bool dies, int64_t expected) {
    ArtifactWriter writer =
        ArtifactWriter::resume(work, "f", outline_of(plan, *model)).value();
    ArtifactSink sink(*model, writer);
    int64_t solved = 0;
    StreamOptions options;
    options.progress = [&](const std::string&, const std::string&, int64_t, int64_t) {
      if (++solved == 9 && dies) throw Error(error(StatusCode::cancelled, "killed"));
    };
    if (dies) {
      EXPECT_THROW(calibrate_into(sink, model, plan, data, options), Error);
      return;
    }
    const Artifact frozen =
        freeze(calibrate_into(sink, model, plan, data, options), {}, writer);
    EXPECT_EQ(solved, expected);
    for (const auto& [name, packed] : whole.packed)
      EXPECT_EQ(frozen.packed.at(name).codes.text(), packed.codes.text()) << name;
    EXPECT_EQ(frozen.ledger, whole.ledger);
  };
  solve(true, 0);
  solve(false, 7);  // the second block's
}

TEST(Streaming, NamesTheLayerWhoseInputsAreNotFinite) {
  Artifact model = testing::small_llama(1);
  // Finite weights whose activations overflow in the second block's MLP.
  const char* name = "model.layers.1.post_attention_layernorm.weight";
  model.tensors[name] = make_tensor({16}, std::vector<float>(16, 3e38f));
  TemporaryDirectory directory;
  const Plan plan = gptq_plan(model.program);
  ArtifactWriter writer =
      ArtifactWriter::resume(directory.path() / "work", "f", outline_of(plan, model))
          .value();
  ArtifactSink sink(model, writer);
  try {
    calibrate_into(sink, std::make_shared<Artifact>(model), plan, sequences(32, 20), {});
    FAIL() << "infinite inputs were taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::out_of_range);
    EXPECT_THAT(error.what(),
                HasSubstr("[calibrate] model.layers.1.mlp.gate_proj: its inputs must be "
                          "finite on the calibration data; found NaN or infinity"));
  }
}

TEST(Spill, GivesBackWhatItTookAndItsPlace) {
  TemporaryDirectory directory;
  SpillFile file(directory.path());
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));  // it has no name
  const std::vector<float> a(1000, 1.5f), b(1000, -2.0f);
  const int64_t at_a = file.write(a.data(), 4000), at_b = file.write(b.data(), 4000);
  std::vector<float> read(1000);
  file.read(read.data(), 4000, at_b);
  EXPECT_EQ(read, b);
  file.release(4000, at_a);
  EXPECT_EQ(file.write(b.data(), 4000), at_a);
  EXPECT_EQ(file.bytes(), 8000);
  try {
    SpillFile nowhere(directory.path() / "none");
    FAIL() << "made a file in a folder that is not there";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("cannot make a file: No such file"));
  }
}

TEST(InverseFactor, IsTheInverseOfTheUpperFactor) {
  const int before = thread_count();
  for (const int64_t n : {1, 7, 128, 129, 300}) {
    const at::Tensor x = at::randn({2 * n, n}, at::detail::createCPUGenerator(n), at::kDouble);
    const at::Tensor h = at::mm(x.t(), x) + 0.1 * at::eye(n, at::kDouble);
    std::vector<at::Tensor> factors;
    for (const int threads : {1, 2}) {
      set_thread_count(threads);
      at::Tensor u = h.clone();
      ASSERT_TRUE(inverse_factor(u)) << n;
      factors.push_back(u);
    }
    const at::Tensor& u = factors[0];
    EXPECT_TRUE(at::equal(u, factors[1])) << n;
    EXPECT_TRUE(at::equal(u, u.triu())) << n;
    const at::Tensor product = at::mm(at::mm(u.t(), u), h);
    EXPECT_LT((product - at::eye(n, at::kDouble)).abs().max().item<double>(), 1e-9) << n;
  }
  set_thread_count(before);
  at::Tensor flat = at::ones({200, 200}, at::kDouble);
  EXPECT_FALSE(inverse_factor(flat));
}

TEST(Shards, AddInTheirOrder) {
  Ranks& ranks = Ranks::instance();
  EXPECT_EQ(ranks.count(), 1);
  for (int shard = 0; shard < kShards; ++shard) EXPECT_EQ(ranks.owner(shard), 0);
  const at::Tensor x = at::randn({90, 20}, at::detail::createCPUGenerator(1), at::kFloat);
  ShardedHessian sum(ranks, 20, at::kCPU);
  Hessian parts[3] = {Hessian(20), Hessian(20), Hessian(20)};
  for (int i = 0; i < 3; ++i) {
    const at::Tensor rows = x.narrow(0, 30 * i, 30);
    sum.shard().accumulate(rows, rows + 1);
    parts[i].accumulate(rows, rows + 1);
    sum.end_shard();
  }
  sum.end_shard();  // one without samples
  const Hessian total = sum.finish();
  EXPECT_EQ(total.tokens(), 90);
  EXPECT_TRUE(at::equal(total.matrix(), (parts[0].matrix() + parts[1].matrix()) +
                                            parts[2].matrix()));
  EXPECT_TRUE(at::equal(total.drift(),
                        (parts[0].drift() + parts[1].drift()) + parts[2].drift()));
}

TEST(PooledAllocator, GivesWholeAlignedMemoryAgain) {
  use_pooled_allocator();
  const void* first = nullptr;
  {
    const at::Tensor a = at::full({100000}, 3.0f);
    first = a.const_data_ptr();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0u);
    EXPECT_EQ(a.sum().item<float>(), 300000.0f);
  }
  const at::Tensor b = at::empty({100001});  // of the same size class
  EXPECT_EQ(b.const_data_ptr(), first);
  for (const int64_t n : {0, 1, 20000, 5000000, 9000000})
    EXPECT_EQ(at::ones({n}).sum().item<double>(), static_cast<double>(n));
}

}  // namespace
}  // namespace nibble
