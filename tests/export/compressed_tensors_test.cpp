// compressed-tensors directories: golden bytes, round trips, configs of other writers,
// and what is refused. That transformers loads them is
// tests/interop/quantized_test.cpp's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "export/assemble.h"
#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "tests/export/hf_random.h"

namespace nibble {
namespace {

using sample::take;
using ::testing::HasSubstr;
using Json = nlohmann::json;
namespace fs = std::filesystem;

class CompressedTensors : public ::testing::Test {
 protected:
  void SetUp() override { directory_ = sample::fresh_directory("ct"); }
  void TearDown() override { fs::remove_all(directory_); }

  Status write(const Artifact& artifact, ExportOptions options = {}) {
    options.overwrite = true;
    return exporter_->write(artifact, directory_, options);
  }
  Json config() const {
    return parse_json_or_throw(take(read_text_file(directory_ / "config.json")));
  }
  std::map<std::string, Tensor> tensors() const {
    return take(read_safetensors(directory_ / "model.safetensors")).tensors;
  }
  // Writes the directory again with other tensors or another quantization_config.
  void rewrite(const std::map<std::string, Tensor>& tensors, const Json& config) const {
    fs::remove(directory_ / "model.safetensors");
    ASSERT_TRUE(write_safetensors(directory_ / "model.safetensors", tensors, {}).ok());
    ASSERT_TRUE(write_file_atomically(directory_ / "config.json", config.dump()).ok());
  }
  std::string refusal(const Artifact& artifact) {
    const Status status = exporter_->can_express(artifact, {});
    EXPECT_EQ(write(artifact).message(), status.message());
    EXPECT_FALSE(fs::exists(directory_));
    return status.message();
  }

  const Exporter* exporter_ = take(find_exporter("compressed-tensors"));
  fs::path directory_;
};

TEST_F(CompressedTensors, RoundTripsOfPackedIntegers) {
  std::vector<std::string> symmetric, with_zero_points;
  for (int bits = 2; bits <= 8; ++bits) {
    symmetric.push_back(cat("int", bits, "/g8@f16"));
    symmetric.push_back(cat("int", bits, "n/r@bf16"));
    with_zero_points.push_back(cat("uint", bits, "/g16@f16+z/g16@uint", bits));
    with_zero_points.push_back(cat("uint", bits, "/r@f32+z/r@uint", bits));
    with_zero_points.push_back(cat("int", bits, "/t@f32+z/t@int", bits));
  }
  sample::expect_round_trips(exporter_->name,
                             {.schemes = symmetric, .multiple = 8, .share = 40});
  sample::expect_round_trips(exporter_->name,
                             {.schemes = with_zero_points, .multiple = 16, .share = 40});
  // Rows of any length where a scale governs all of it.
  sample::expect_round_trips(
      exporter_->name,
      {.schemes = {"int3/r@f16", "int5/t@f32", "int4/g512@f16"}, .share = 20});
}

TEST_F(CompressedTensors, RoundTripsOfIntegersWithIntegerInputs) {
  sample::expect_round_trips(exporter_->name, {.schemes = {"int8n/r@f32", "int8/t@bf16",
                                                           "uint8/r@f16+z/r@uint8"},
                                               .input = "int8n/r@f32",
                                               .share = 20});
  sample::expect_round_trips(exporter_->name, {.schemes = {"int4/g32@f16", "int8n/r@f32"},
                                               .multiple = 32,
                                               .input = "int8/t@f32",
                                               .share = 20});
  sample::expect_round_trips(
      exporter_->name, {.schemes = {"int8n/r@f32"}, .input = "uint8/t@f32", .share = 10});
}

TEST_F(CompressedTensors, RoundTripsOfFp4) {
  sample::expect_round_trips(
      exporter_->name, {.schemes = {"e2m1/g32@e8m0"}, .multiple = 32, .share = 50});
  sample::expect_round_trips(
      exporter_->name, {.schemes = {"e2m1/g16@e4m3/t@f32"}, .multiple = 16, .share = 50});
}

TEST_F(CompressedTensors, SaysWhatFp4CannotHold) {
  const auto refusal = [&](const sample::RandomModel& model) {
    return exporter_->can_express(sample::random_model(3, model), {}).message();
  };
  EXPECT_THAT(refusal({.schemes = {"e2m1/g32@f16"}, .multiple = 32}),
              HasSubstr("uses e2m1/g32@f16; of e2m1 the format holds e2m1/g32@e8m0 (MXFP4) "
                        "and e2m1/g16@e4m3/t@f32 (NVFP4)"));
  EXPECT_THAT(refusal({.schemes = {"e2m1/g32@e8m0"}, .multiple = 8}),
              HasSubstr("columns must be whole groups of 32"));
  EXPECT_THAT(refusal({.schemes = {"e2m1/g32@e8m0"}, .multiple = 32, .input = "int8n/r@f32"}),
              HasSubstr("4-bit floats are written with float activations"));
}

// BERT's pooler, which no node reads: a runtime that makes it anew must make it of floats.
TEST_F(CompressedTensors, LeavesAloneWhatTheProgramDidNotUse) {
  Artifact artifact = sample::random_model(3, {.schemes = {"int8n/r@f32"}});
  for (const char* name : {"pooler.dense.weight", "pooler.dense.bias", "position_ids"}) {
    LedgerEntry entry;
    entry.tensor = name;
    entry.method = "ignored";
    artifact.ledger.entries.push_back(entry);
  }
  const auto directory = sample::fresh_directory("ignored");
  ASSERT_TRUE(exporter_->write(artifact, directory, {}).ok());
  const Json config =
      parse_json_or_throw(sample::take(read_text_file(directory / "config.json")));
  const Json& ignore = config["quantization_config"]["ignore"];
  EXPECT_NE(std::find(ignore.begin(), ignore.end(), "pooler.dense"), ignore.end()) << ignore;
  EXPECT_EQ(std::count(ignore.begin(), ignore.end(), "position_ids"), 0);
  std::filesystem::remove_all(directory);
}

TEST_F(CompressedTensors, RoundTripsOfFp8) {
  const std::vector<std::string> schemes = {"e4m3/t@f32", "e4m3/r@bf16",
                                            "e4m3/b16x16@f32", "e4m3/b128x128@bf16"};
  for (const char* input : {"", "e4m3/r@f32", "e4m3/t@f32"}) {
    sample::expect_round_trips(exporter_->name,
                               {.schemes = schemes, .input = input, .share = 20});
  }
}

TEST_F(CompressedTensors, TheConfigSaysWhatTheTensorsAre) {
  Artifact artifact = sample::quantized(
      sample::llama({.tied = false}, 61), "uint4/g16@f16+z/g16@uint4",
      [](const Node& node) { return node.op == "linear" && node.name != "lm_head"; });
  ASSERT_TRUE(write(artifact).ok());
  const Json quantization = config().at("quantization_config");
  EXPECT_EQ(quantization.at("quant_method"), "compressed-tensors");
  EXPECT_EQ(quantization.at("format"), "pack-quantized");
  EXPECT_EQ(quantization.at("ignore"), Json({"lm_head"}));
  const Json group = quantization.at("config_groups").at("group_0");
  EXPECT_EQ(group.at("targets"), Json({"Linear"}));
  EXPECT_EQ(group.at("weights"), Json({{"num_bits", 4},
                                       {"type", "int"},
                                       {"symmetric", false},
                                       {"strategy", "group"},
                                       {"group_size", 16},
                                       {"dynamic", false}}));
  EXPECT_TRUE(group.at("input_activations").is_null());
  const auto stored = tensors();
  const std::string module = "model.layers.0.mlp.down_proj";  // [48, 80]
  EXPECT_EQ(stored.at(module + ".weight_packed").shape, (std::vector<int64_t>{48, 10}));
  EXPECT_EQ(stored.at(module + ".weight_scale").shape, (std::vector<int64_t>{48, 5}));
  EXPECT_EQ(stored.at(module + ".weight_zero_point").shape, (std::vector<int64_t>{6, 5}));
  EXPECT_EQ(take(to_int32(stored.at(module + ".weight_shape"))),
            (std::vector<int32_t>{48, 80}));
  EXPECT_FALSE(stored.count(module + ".weight"));
  EXPECT_TRUE(stored.count("lm_head.weight"));

  // Two schemes, two groups, by name.
  const std::string other = "model.layers.1.mlp.up_proj.weight";
  const Artifact eight =
      sample::quantized(sample::llama({.tied = false}, 61), "int8n/r@f32");
  artifact.packed[other] = eight.packed.at(other);
  artifact.layers[other] = eight.layers.at(other);
  ASSERT_TRUE(write(artifact).ok());
  const Json groups = config().at("quantization_config").at("config_groups");
  ASSERT_EQ(groups.size(), 2u);
  std::set<std::string> targets;
  for (const auto& [name, entry] : groups.items()) {
    for (const Json& target : entry.at("targets"))
      targets.insert(target.get<std::string>());
  }
  EXPECT_EQ(targets.size(), artifact.packed.size());
  EXPECT_TRUE(targets.count("model.layers.1.mlp.up_proj"));
}

TEST_F(CompressedTensors, ShardsHaveAnIndex) {
  const Artifact artifact =
      sample::quantized(sample::llama({.tied = false}, 62), "int4/g16@f16",
                        [](const Node& node) { return node.op == "linear"; });
  ExportOptions options;
  options.shard_bytes = 8000;
  ASSERT_TRUE(write(artifact, options).ok());
  const Json index = parse_json_or_throw(
      take(read_text_file(directory_ / "model.safetensors.index.json")));
  const Json& map = index.at("weight_map");
  EXPECT_TRUE(map.contains("model.layers.0.mlp.down_proj.weight_packed"));
  EXPECT_EQ(map.at("model.layers.0.mlp.down_proj.weight_packed"),
            map.at("model.layers.0.mlp.down_proj.weight_scale"));
  EXPECT_FALSE(fs::exists(directory_ / "model.safetensors"));
  const Status same = check_decoded(artifact, take(exporter_->read(directory_)));
  EXPECT_TRUE(same.ok()) << same.message();
}

// Rows whose rope pairs lie side by side leave in transformers' order, codes and scales.
TEST_F(CompressedTensors, InterleavedRowsLeaveInTransformersOrder) {
  const Artifact artifact = sample::quantized(
      sample::llama({.interleaved = true, .tied = false}, 63), "int4/g16@f16",
      [](const Node& node) { return node.op == "linear"; });
  ASSERT_TRUE(write(artifact).ok());
  const Decoded decoded = take(exporter_->read(directory_));
  const std::string q = "model.layers.0.self_attn.q_proj.weight";
  const CodedMatrix before = take(unpack(artifact.packed.at(q)));
  const CodedMatrix& after = decoded.coded.at(q);
  for (int64_t r = 0; r < 48; ++r) {  // heads of 12 rows
    const int64_t i = r % 12, from = r - i + (i < 6 ? 2 * i : 2 * (i - 6) + 1);
    for (int64_t c = 0; c < 48; ++c) {
      ASSERT_EQ(after.codes[r * 48 + c], before.codes[from * 48 + c]) << r << " " << c;
    }
    for (int64_t g = 0; g < 3; ++g) {
      ASSERT_EQ(after.scales[0].values[r * 3 + g], before.scales[0].values[from * 3 + g]);
    }
  }
  const std::string v = "model.layers.0.self_attn.v_proj.weight";
  EXPECT_EQ(decoded.coded.at(v), take(unpack(artifact.packed.at(v))));
}

// What others write: other targets, strategies left out, older packing, act-order, fixed
// scales of the KV cache.
TEST_F(CompressedTensors, ReadsWhatOthersWrite) {
  const sample::RandomModel model{.schemes = {"int5/g8@f16"}, .multiple = 16};
  // One quantized layer, of rows so long that the two packings differ in width.
  uint64_t seed = 0;
  const auto fits = [&] {
    const Artifact made = sample::random_model(seed, model);
    return made.packed.size() == 1 && made.packed.begin()->second.cols >= 128;
  };
  while (!fits()) ++seed;
  const Artifact artifact = sample::random_model(seed, model);
  ASSERT_TRUE(write(artifact).ok());
  Json json = config();
  Json& group = json["quantization_config"]["config_groups"]["group_0"];
  auto stored = tensors();
  group["targets"] = {"re:layers\\.[0-9]+\\.proj$"};
  group["weights"].erase("strategy");
  group["weights"]["observer"] = "minmax";
  json["quantization_config"].erase("format");
  json["quantization_config"]["kv_cache_scheme"] = {
      {"num_bits", 8}, {"type", "float"}, {"symmetric", true}, {"strategy", "tensor"}};
  stored["layers.0.attn.k_scale"] = make_tensor({1}, std::vector<float>{0.5f});
  // Six codes of 5 bits in a word, as releases before 2026 packed them.
  for (auto& [name, tensor] : stored) {
    if (!name.ends_with(".weight_packed")) continue;
    const std::string weight = name.substr(0, name.size() - 7);
    const CodedMatrix q = take(unpack(artifact.packed.at(weight)));
    const int64_t width = (q.cols + 5) / 6;
    std::vector<int32_t> words(static_cast<size_t>(q.rows * width), 0);
    for (int64_t r = 0; r < q.rows; ++r) {
      for (int64_t c = 0; c < q.cols; ++c) {
        const int code = static_cast<int8_t>(q.codes[r * q.cols + c]) + 16;
        words[r * width + c / 6] |= code << (5 * (c % 6));
      }
    }
    tensor = make_tensor({q.rows, width}, std::span<const int32_t>(words));
  }
  rewrite(stored, json);
  const Decoded decoded = take(exporter_->read(directory_));
  const Status same = check_decoded(artifact, decoded);
  EXPECT_TRUE(same.ok()) << same.message();
  EXPECT_EQ(decoded.ignored.count("layers.0.attn.k_scale"), 1u);
  EXPECT_EQ(decoded.caches.size(), 0u);  // keys alone say nothing

  // Act-order: column c belongs to the group that weight_g_idx says.
  const int64_t cols = artifact.packed.begin()->second.cols;
  std::vector<int32_t> group_of(static_cast<size_t>(cols));
  for (int64_t c = 0; c < cols; ++c) {
    group_of[static_cast<size_t>(c)] = static_cast<int32_t>((cols - 1 - c) / 8);
  }
  stored["layers.0.proj.weight_g_idx"] =
      make_tensor({cols}, std::span<const int32_t>(group_of));
  group["weights"]["actorder"] = "group";
  rewrite(stored, json);
  const Decoded ordered = take(exporter_->read(directory_));
  const auto& order = ordered.permutations.at("layers.0.proj.weight");
  EXPECT_EQ(order.front(), cols - 8);  // the first of the last eight, now group 0
  EXPECT_EQ(order.back(), 7);
}

TEST_F(CompressedTensors, HoldsCalibratedCaches) {
  const auto linear = [](const Node& node) { return node.op == "linear"; };
  Artifact artifact =
      sample::quantized(sample::llama({.tied = false}, 67), "int4/g16@f32", linear);
  const auto with = [&](const char* text) {
    for (size_t i = 0; i < artifact.program.states.size(); ++i) {
      KvScheme& scheme = artifact.program.states[i].scheme;
      scheme = *parse_kv_scheme(text, 1, 1);
      if (scheme.key_scale > 0) scheme.key_scale += static_cast<float>(i);
    }
  };
  const std::string module = "model.layers.1.self_attn";
  for (const char* text : {"e4m3/t@bf16=0.0625,e4m3/t@f32=0.1", "int8/t@f32=0.3"}) {
    with(text);
    ASSERT_TRUE(write(artifact).ok());
    const Json scheme = config().at("quantization_config").at("kv_cache_scheme");
    EXPECT_EQ(scheme.at("type"), text[0] == 'e' ? "float" : "int");
    EXPECT_EQ(scheme.at("num_bits"), 8);
    EXPECT_EQ(tensors().at(module + ".v_scale").shape, std::vector<int64_t>{1});
    const Decoded decoded = take(exporter_->read(directory_));
    EXPECT_EQ(decoded.ignored.size(), 0u);
    const KvScheme& wrote = artifact.program.states[1].scheme;
    const KvScheme& read = decoded.caches.at(module);
    EXPECT_EQ(read.key_scale, wrote.key_scale);
    EXPECT_EQ(read.value_scale, wrote.value_scale);
    EXPECT_EQ(read.keys.code, wrote.keys.code);
    EXPECT_EQ(decoded.caches.size(), artifact.program.states.size());
    // And as a model: its caches are what the checkpoint says.
    Artifact model;
    model.program = artifact.program;
    for (ProgramState& state : model.program.states) state.scheme = {};
    ASSERT_TRUE(assemble(decoded, "compressed-tensors", model).ok());
    EXPECT_EQ(model.program.states[1].scheme, read);
    model.program.states.pop_back();
    EXPECT_THAT(assemble(decoded, "compressed-tensors", model).message(),
                HasSubstr("has no such attention; found scales of its KV cache"));
  }
  // Not calibrated, of two kinds, or with scales of their own: left to the user.
  for (const char* text : {"fp8-static", "e4m3/t@f32=1,int8/t@f32=1", "int8"}) {
    with(text);
    ASSERT_TRUE(write(artifact).ok());
    EXPECT_TRUE(config().at("quantization_config").at("kv_cache_scheme").is_null());
    EXPECT_EQ(take(exporter_->read(directory_)).caches.size(), 0u);
  }
  // Others' files: a scheme that is not static; a scale that is none.
  with("e4m3/t@f32=0.1");
  ASSERT_TRUE(write(artifact).ok());
  Json json = config();
  auto stored = tensors();
  json["quantization_config"]["kv_cache_scheme"]["dynamic"] = true;
  rewrite(stored, json);
  EXPECT_EQ(take(exporter_->read(directory_)).ignored.count("kv_cache_scheme"), 1u);
  json["quantization_config"]["kv_cache_scheme"]["dynamic"] = false;
  stored[module + ".k_scale"] = make_tensor({1}, std::vector<float>{0});
  rewrite(stored, json);
  const Decoded decoded = take(exporter_->read(directory_));
  EXPECT_EQ(decoded.caches.count(module), 0u);
  EXPECT_EQ(decoded.ignored.count(module + ".k_scale"), 1u);
}

// A tied table: its lm_head stays float with it.
TEST_F(CompressedTensors, EmbeddingsBecomeTheFloatsTheyStandForWhereAsked) {
  const Artifact artifact = sample::quantized(sample::llama({}, 66), "int4/g16@f16");
  ExportOptions options;
  options.float_embeddings = true;
  ASSERT_TRUE(write(artifact, options).ok());
  const Decoded decoded = take(exporter_->read(directory_));
  const std::string name = "model.embed_tokens.weight";
  const PackedTensor& packed = artifact.packed.at(name);
  std::vector<float> values(static_cast<size_t>(packed.rows * packed.cols));
  ASSERT_TRUE(dequantize_rows(packed, 0, {values.data(), packed.rows, packed.cols}).ok());
  EXPECT_EQ(take(to_float(decoded.floats.at(name))), values);
  EXPECT_EQ(decoded.coded.size(), artifact.packed.size() - 1);
  EXPECT_EQ(config().at("quantization_config").at("ignore"), Json({"lm_head"}));
}

TEST_F(CompressedTensors, SaysFirstWhatItCannotHold) {
  const auto linear = [](const Node& node) { return node.op == "linear"; };
  const Artifact floats = sample::llama({.tied = false}, 65);
  const std::string first = "[compressed-tensors] lm_head.weight: ";
  EXPECT_THAT(refusal(floats),
              HasSubstr("a quantized model is required; found a float one"));
  EXPECT_EQ(refusal(sample::quantized(floats, "nf4/f64@f32", linear)),
            first +
                "uses nf4/f64@f32; the format holds integers of 2 to 8 bits, e4m3 "
                "and e2m1; quantize with one of these");
  EXPECT_EQ(refusal(sample::quantized(floats, "uint4/g32@uint6/g64@f16", linear)),
            first +
                "uses uint4/g32@uint6/g64@f16; the format has one level of scales, f16, "
                "bf16 or f32; quantize so");
  EXPECT_EQ(refusal(sample::quantized(floats, "uint4/g16@f16+m/g16@f16", linear)),
            first +
                "uses uint4/g16@f16+m/g16@f16; the format has integer zero points of the "
                "codes' own bits, one a scale; quantize so, or symmetrically");
  EXPECT_EQ(refusal(sample::quantized(floats, "int4/g32@f16", linear)),
            first +
                "its 48 columns must be whole groups of 32; found int4/g32@f16; use a "
                "group that divides them, or a scale a row");
  EXPECT_EQ(refusal(sample::quantized(floats, "int4/c@f16", linear)),
            first +
                "uses int4/c@f16; the format has a scale a tensor, row or group; "
                "quantize with one of these");
  EXPECT_EQ(
      refusal(sample::quantized(sample::llama({}, 65), "int4/g16@f16")),
      "[compressed-tensors] model.embed_tokens.weight: only linear layers can be "
      "quantized; found int4/g16@f16 in an embedding layer; give --float-embeddings, "
      "leave it float in the recipe, or export to the nibble format");
  Artifact artifact = sample::quantized(floats, "int4/g16@f16", linear);
  LayerScheme& layer = artifact.layers.at("lm_head.weight");
  layer.input = ActivationScheme{take(parse_scheme("int8/g16@f32")), true, 0, 0};
  EXPECT_EQ(
      refusal(artifact),
      "[compressed-tensors] the input of lm_head.weight: the format has integers or "
      "e4m3 with a scale a token (dynamic) or a tensor (static); found dynamic "
      "int8/g16@f32");
  layer.input.reset();
  layer.extras.permutation = "order";
  EXPECT_THAT(refusal(artifact), HasSubstr("found a permutation; export to gptq"));
  layer.extras = {};
  layer.extras.low_rank_a = "a";
  EXPECT_THAT(refusal(artifact),
              HasSubstr("lm_head.weight: a layer must be its codes and "
                        "scales alone; found a"));
  artifact.layers.at("lm_head.weight").extras = {};
  ExportOptions options;
  options.shard_bytes = 0;
  EXPECT_THAT(exporter_->can_express(artifact, options).message(),
              HasSubstr("at least 1"));
}

TEST_F(CompressedTensors, DamageIsNamed) {
  const Artifact artifact =
      sample::random_model(3, {.schemes = {"uint4/g8@f16+z/g8@uint4"}, .multiple = 8});
  ASSERT_TRUE(write(artifact).ok());
  const Json json = config();
  const auto stored = tensors();
  const auto message = [&] { return exporter_->read(directory_).status().message(); };
  const auto without = [&](const std::string& end) {
    auto changed = stored;
    changed.erase("layers.0.proj" + end);
    rewrite(changed, json);
    return message();
  };
  EXPECT_THAT(without(".weight_packed"),
              HasSubstr("[compressed-tensors] layers.0.proj.weight"));
  EXPECT_THAT(without(".weight_shape"),
              HasSubstr("weight_shape: must be there, I64 or I32 [2]"));
  EXPECT_THAT(without(".weight_zero_point"),
              HasSubstr("weight_zero_point: must be there"));
  const auto changed = [&](const std::function<void(Json&)>& change) {
    Json other = json;
    change(other["quantization_config"]);
    rewrite(stored, other);
    return message();
  };
  EXPECT_THAT(
      changed([](Json& c) { c["config_groups"]["group_0"]["weights"]["num_bits"] = 9; }),
      HasSubstr("integers of 2 to 8 bits, FP8 and FP4 are read; found 9 bits of int"));
  EXPECT_THAT(
      changed([](Json& c) { c["config_groups"]["group_0"]["weights"]["num_bits"] = 3; }),
      HasSubstr("codes of 3 bits take"));
  EXPECT_THAT(changed([](Json& c) { c.erase("config_groups"); }),
              HasSubstr("quantization_config must have the fields of the format"));
  EXPECT_THAT(
      changed([](Json& c) { c["config_groups"]["group_0"]["targets"] = {"a.b"}; }),
      HasSubstr("a config group must name every quantized module"));
  EXPECT_THAT(
      changed([](Json& c) { c["sparsity_config"]["format"] = "sparse-24-bitmask"; }),
      HasSubstr("dense weights are read; found sparse-24-bitmask"));
  EXPECT_THAT(changed([](Json& c) { c["quant_method"] = "awq"; }),
              HasSubstr("quant_method must be compressed-tensors; found `awq`"));
  EXPECT_THAT(changed([](Json& c) {
                c["config_groups"]["group_0"]["weights"]["strategy"] = "tensor_group";
              }),
              HasSubstr("found tensor_group"));
}

}  // namespace
}  // namespace nibble
