// Calibration that streams: layers to disk as they come, activations on disk, shards.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

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

Calibrated calibrate_into(SolvedLayers& solved, std::shared_ptr<const Artifact> model,
                          const Plan& plan, const CalibrationData& data,
                          const StreamOptions& options) {
  return StreamedCalibration(std::move(model), plan, data, options).solve(solved);
}

// Plans that find something before layers are solved, or keep more than codes.
std::vector<std::pair<std::string, Plan>> other_plans(const Artifact& model) {
  std::vector<std::pair<std::string, Plan>> plans;
  Plan plan = gptq_plan(model.program, "int8n/r@f32");
  for (LayerPlan& layer : plan.layers) {
    if (layer.method == "gptq" && layer.node != "lm_head") layer.rank = 2;
  }
  plans.emplace_back("gptq with factors on outputs", plan);
  for (LayerPlan& layer : plan.layers) {
    if (layer.method == "gptq") layer.method = "rtn";
  }
  plan.low_rank_on_outputs = false;
  plans.emplace_back("rtn with factors of weights", plan);
  plan = gptq_plan(model.program);
  for (LayerPlan& layer : plan.layers) {
    if (layer.method == "gptq") layer.method = "autoround";
    if (layer.node.ends_with("q_proj")) layer.rank = 3;
  }
  plan.autoround.iterations = 6;
  plans.emplace_back("autoround with factors", plan);
  plan = gptq_plan(model.program);
  for (LayerPlan& layer : plan.layers) {
    if (layer.method == "float") continue;
    layer.scheme.weight = parse_scheme("int8n/r@f32").value();
    layer.scheme.input = ActivationScheme{.scheme = parse_scheme("int8/t@f32").value()};
  }
  plan.observer = "mse";
  plans.emplace_back("gptq on static inputs", plan);
  plan.transforms = {"smoothquant"};
  plans.emplace_back("smoothquant, then gptq on static inputs", plan);
  plan = gptq_plan(model.program, "int4/g8@f16");
  for (const char* text : {"int3/g8@f16", "int4/g8@f16", "int6/g8@f16"})
    plan.mixed.schemes.push_back(parse_scheme(text).value());
  for (const LayerPlan& layer : plan.layers) {
    const Tensor& values = model.tensors.at(layer.tensor);
    for (const QuantScheme& scheme : plan.mixed.schemes)
      plan.mixed.costs[layer.tensor].push_back(
          bits_per_value(scheme, values.rows(), values.cols()) *
          static_cast<double>(values.numel()));
    plan.mixed.budget += plan.mixed.costs[layer.tensor][1];
  }
  plan.mixed.unit = "bits";
  plans.emplace_back("mixed gptq", plan);
  plan.transforms = {"awq"};
  plans.emplace_back("awq, then mixed gptq", plan);
  return plans;
}

// Plans whose transforms change the model that is solved, and whose solves see more than
// floats.
std::vector<std::pair<std::string, Plan>> transformed_plans(const Program& program) {
  std::vector<std::pair<std::string, Plan>> plans;
  Plan plan = gptq_plan(program);
  plan.transforms = {"awq"};
  plans.emplace_back("awq, then gptq", plan);
  for (LayerPlan& layer : plan.layers) {
    if (layer.method == "gptq") layer.method = "awq";
  }
  plans.emplace_back("awq and its clip search", plan);
  for (LayerPlan& layer : plan.layers) {
    if (layer.method == "float") continue;
    layer.method = "gptq";
    layer.scheme.weight = parse_scheme("int8n/r@f32").value();
    layer.scheme.input = ActivationScheme{.scheme = layer.scheme.weight, .dynamic = true};
  }
  plan.transforms = {"smoothquant", "awq"};
  plans.emplace_back("smoothquant, awq, then gptq on rounded inputs", plan);
  for (LayerPlan& layer : plan.layers) {
    if (layer.method == "gptq") layer.method = "autoround";
  }
  plan.autoround.iterations = 12;
  plan.transforms = {"awq"};
  plans.emplace_back("awq, then autoround", plan);
  return plans;
}

void expect_same(const Artifact& a, const Artifact& b, const std::string& what) {
  ASSERT_EQ(a.packed.size(), b.packed.size()) << what;
  for (const auto& [name, packed] : b.packed) {
    EXPECT_EQ(a.packed.at(name).codes.text(), packed.codes.text()) << what << " " << name;
    EXPECT_EQ(a.packed.at(name).scales[0].values.text(), packed.scales[0].values.text())
        << what << " " << name;
  }
  for (const auto& [name, tensor] : b.tensors) {
    EXPECT_EQ(a.tensors.at(name).dtype, tensor.dtype) << what << " " << name;
    EXPECT_EQ(a.tensors.at(name).bytes.text(), tensor.bytes.text())
        << what << " " << name;
  }
  EXPECT_EQ(a.ledger, b.ledger) << what;
}

TEST(Streaming, TransformsGiveTheArtifactFromMemory) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(1));
  const CalibrationData data = sequences(32, 20);
  for (const auto& [what, plan] : transformed_plans(model->program)) {
    const Artifact whole = freeze(calibrate(model, plan, data, {}), {});
    EXPECT_NE(whole.ledger.entries.at(0).note + whole.ledger.entries.at(1).note, "");
    for (const bool spills : {false, true}) {
      TemporaryDirectory directory;
      ArtifactWriter writer =
          ArtifactWriter::resume(directory.path() / "work", "f", outline_of(plan, *model))
              .value();
      ArtifactSink sink(*model, writer);
      std::vector<BlockDone> blocks;
      StreamOptions options;
      options.block_done = [&](const BlockDone& done) { blocks.push_back(done); };
      if (spills) options.spill = directory.path();
      const Artifact frozen =
          freeze(calibrate_into(sink, model, plan, data, options), {}, writer);
      expect_same(frozen, whole, what);
      EXPECT_TRUE(check_artifact(frozen).ok());
      ASSERT_EQ(blocks.size(), 2 * (1 + plan.transforms.size())) << what;
      EXPECT_EQ(blocks[0].step, plan.transforms[0]);
      EXPECT_EQ(blocks[0].layers, 4);
      EXPECT_EQ(blocks[1].done, blocks[1].total);
      EXPECT_EQ(blocks.back().step, "");
    }
  }
}

// A run that died while it searched factors, and again while it solved.
TEST(Streaming, TransformsResumeToTheSameArtifact) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(2));
  const CalibrationData data = sequences(32, 20);
  const Plan plan = transformed_plans(model->program)[2].second;
  const Artifact whole = freeze(calibrate(model, plan, data, {}), {});
  TemporaryDirectory directory;
  const auto work = directory.path() / "work";
  // Steps: 8 groups of smoothquant, 8 of awq, 14 layers.
  for (const auto& [dies_after, found] :
       std::vector<std::pair<int, size_t>>{{6, 0}, {13, 4}, {24, 12}, {0, 16}}) {
    ArtifactWriter writer =
        ArtifactWriter::resume(work, "f", outline_of(plan, *model)).value();
    ArtifactSink sink(*model, writer);
    FoundScales scales(work / "scales", "f");
    EXPECT_EQ(scales.resumed(), found);
    int steps = 0;
    StreamOptions options;
    options.found = &scales;
    options.progress = [&](const std::string&, const std::string&, int64_t, int64_t) {
      if (++steps == dies_after) throw Error(error(StatusCode::cancelled, "killed"));
    };
    if (dies_after > 0) {
      EXPECT_THROW(calibrate_into(sink, model, plan, data, options), Error);
    } else {
      expect_same(freeze(calibrate_into(sink, model, plan, data, options), {}, writer),
                  whole, "resumed");
    }
  }
}

// A block is tuned as a whole or not at all.
TEST(Streaming, TunedBlocksResumeToTheSameArtifact) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(3));
  const CalibrationData data = sequences(32, 20);
  const Plan plan = transformed_plans(model->program)[3].second;
  const Artifact whole = freeze(calibrate(model, plan, data, {}), {});
  TemporaryDirectory directory;
  const auto work = directory.path() / "work";
  // Steps: 8 groups of awq, 14 layers; the scales are found anew where no file keeps
  // them.
  for (const auto& [dies_after, left] :
       std::vector<std::pair<int, int>>{{12, 14}, {17, 7}, {0, 7}}) {
    ArtifactWriter writer =
        ArtifactWriter::resume(work, "f", outline_of(plan, *model)).value();
    ArtifactSink sink(*model, writer);
    int steps = 0;
    StreamOptions options;
    options.progress = [&](const std::string&, const std::string&, int64_t, int64_t) {
      if (++steps == dies_after) throw Error(error(StatusCode::cancelled, "killed"));
    };
    if (dies_after > 0) {
      EXPECT_THROW(calibrate_into(sink, model, plan, data, options), Error);
      continue;
    }
    expect_same(freeze(calibrate_into(sink, model, plan, data, options), {}, writer),
                whole, "resumed");
    EXPECT_EQ(steps, 8 + left);
  }
}

// On disk and with activations there, killed anywhere and gone on with.
TEST(Streaming, OtherPlansGiveTheArtifactFromMemoryAndResume) {
  const auto model = std::make_shared<Artifact>(testing::small_llama(4));
  const CalibrationData data = sequences(32, 20);
  for (const auto& [what, plan] : other_plans(*model)) {
    const Artifact whole = freeze(calibrate(model, plan, data, {}), {});
    EXPECT_TRUE(check_artifact(whole).ok()) << what;
    for (const bool spills : {false, true}) {
      TemporaryDirectory directory;
      const auto work = directory.path() / "work";
      std::filesystem::create_directories(work);
      bool done = false;
      size_t found = 0;
      // Each life is longer than the one before, and knows what that has found.
      for (int dies_after = 5; !done; dies_after += 5) {
        FoundScales scales(work / "scales", "f");
        EXPECT_GE(scales.resumed(), found) << what;
        found = scales.resumed();
        int steps = 0;
        StreamOptions options;
        options.found = &scales;
        if (spills) options.spill = directory.path();
        options.progress = [&](const std::string&, const std::string&, int64_t, int64_t) {
          if (++steps == dies_after) throw Error(error(StatusCode::cancelled, "killed"));
        };
        try {
          StreamedCalibration calibration(model, plan, data, options);
          ArtifactWriter writer =
              ArtifactWriter::resume(work, "f", outline_of(calibration.plan(), *model))
                  .value();
          ArtifactSink sink(*model, writer);
          const Artifact frozen = freeze(calibration.solve(sink), {}, writer);
          expect_same(frozen, whole, what);
          EXPECT_EQ(print_program(frozen.program), print_program(whole.program)) << what;
          EXPECT_EQ(frozen.layers, whole.layers) << what;
          EXPECT_TRUE(check_artifact(frozen).ok()) << what;
          done = true;
          EXPECT_EQ(found > 0, !plan.mixed.schemes.empty() || !plan.transforms.empty() ||
                                   what == "gptq on static inputs")
              << what;
        } catch (const Error& killed) {
          ASSERT_EQ(killed.status().code(), StatusCode::cancelled)
              << what << " " << killed.what();
        }
      }
    }
  }
}

TEST(FoundScales, OneProcessAtATime) {
  TemporaryDirectory directory;
  const FoundScales mine(directory.path() / "scales", "f");
  try {
    const FoundScales other(directory.path() / "scales", "g");
    FAIL() << "two have the file";
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::failed_precondition);
    EXPECT_THAT(error.what(), HasSubstr("one process at a time may write there"));
  }
}

TEST(FoundScales, WhatAKillHasTornCountsAsNotWritten) {
  TemporaryDirectory directory;
  const auto path = directory.path() / "scales";
  const GroupScale one{{1.5, 0.1}, {{"a.weight", "awq: alpha 0.5"}}},
      two{{1, 2, 1 / 3.0}, {}};
  {
    FoundScales found(path, "f");
    found.put("awq", "a", one);
    found.end_block();
    found.put("awq", "b", two);
    found.end_block();
    found.put("awq", "c", two);  // its block never ends
  }
  std::string text;
  {
    const FoundScales found(path, "f");
    EXPECT_EQ(found.resumed(), 2u);
    ASSERT_NE(found.find("awq", "b"), nullptr);
    EXPECT_EQ(found.find("awq", "a")->scale, one.scale);
    EXPECT_EQ(found.find("awq", "a")->notes, one.notes);
    EXPECT_EQ(found.find("awq", "b")->scale, two.scale);
    EXPECT_EQ(found.find("smoothquant", "a"), nullptr);
    std::ifstream file(path);
    text.assign(std::istreambuf_iterator<char>(file), {});
  }
  for (size_t cut = text.size() - 1; cut > text.size() - 60; cut -= 7) {
    std::ofstream(path) << text.substr(0, cut);
    {
      FoundScales found(path, "f");
      EXPECT_EQ(found.resumed(), 1u);
      found.put("awq", "b", two);
      found.end_block();
    }
    EXPECT_EQ(FoundScales(path, "f").resumed(), 2u);
  }
  EXPECT_EQ(FoundScales(path, "another").resumed(), 0u);
  EXPECT_EQ(FoundScales(path, "f").resumed(), 0u);
}

TEST(Streaming, NamesTheGroupWhoseInputsAreNotFinite) {
  Artifact model = testing::small_llama(1);
  const char* name = "model.layers.1.post_attention_layernorm.weight";
  model.tensors[name] = make_tensor({16}, std::vector<float>(16, 3e38f));
  Plan plan = gptq_plan(model.program);
  plan.transforms = {"awq"};
  try {
    calibrate(std::make_shared<Artifact>(model), plan, sequences(32, 20), {});
    FAIL() << "infinite inputs were taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::out_of_range);
    EXPECT_THAT(error.what(),
                HasSubstr("[awq] model.layers.1.mlp.gate_proj.weight: its inputs must be "
                          "finite on the calibration data; found NaN or infinity"));
  }
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
