// GPTQ, AWQ and bitsandbytes directories: round trips, configs, what is refused, damage.
// Golden bytes are tests/golden/hf_packing_test.cpp's, other tools tests/interop's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "kernels/packing/packed_tensor.h"
#include "tests/export/hf_random.h"

namespace nibble {
namespace {

using sample::take;
using ::testing::HasSubstr;
using Json = nlohmann::json;
namespace fs = std::filesystem;

bool is_linear(const Node& node) { return node.op == "linear"; }

class HfQuantized : public ::testing::Test {
 protected:
  void SetUp() override { directory_ = sample::fresh_directory("hfq"); }
  void TearDown() override { fs::remove_all(directory_); }

  Status write(const std::string& format, const Artifact& artifact,
               ExportOptions options = {}) {
    options.overwrite = true;
    return take(find_exporter(format))->write(artifact, directory_, options);
  }
  Result<Decoded> read(const std::string& format) {
    return take(find_exporter(format))->read(directory_);
  }
  Json config() const {
    return parse_json_or_throw(take(read_text_file(directory_ / "config.json")))
        .at("quantization_config");
  }
  std::map<std::string, Tensor> tensors() const {
    return take(read_safetensors(directory_ / "model.safetensors")).tensors;
  }
  std::string refusal(const std::string& format, const Artifact& artifact) {
    const Status status = take(find_exporter(format))->can_express(artifact, {});
    EXPECT_EQ(write(format, artifact).message(), status.message());
    EXPECT_FALSE(fs::exists(directory_));
    return status.message();
  }
  // The reader's message after a change of config and tensors.
  std::string damage(
      const std::string& format,
      const std::function<void(Json&, std::map<std::string, Tensor>&)>& change) {
    const std::string text = take(read_text_file(directory_ / "config.json"));
    const auto before = tensors();
    Json json = parse_json_or_throw(text);
    auto changed = before;
    change(json["quantization_config"], changed);
    const auto put = [&](const std::string& config,
                         const std::map<std::string, Tensor>& t) {
      EXPECT_TRUE(write_file_atomically(directory_ / "config.json", config).ok());
      EXPECT_TRUE(
          write_safetensors_atomically(directory_ / "model.safetensors", t, {}).ok());
    };
    put(json.dump(), changed);
    const std::string message = read(format).status().message();
    put(text, before);
    return message;
  }

  fs::path directory_;
};

TEST_F(HfQuantized, GptqRoundTrips) {
  std::vector<std::string> schemes, zeros;
  for (const int bits : {2, 3, 4, 8}) {
    schemes.push_back(cat("int", bits, "/g32@f16"));
    schemes.push_back(cat("int", bits, "n/r@f16"));
    zeros.push_back(cat("uint", bits, "/g64@f16+z/g64@uint", bits));
    zeros.push_back(cat("uint", bits, "/r@f16+z/r@uint", bits));
  }
  sample::expect_round_trips("gptq", {.schemes = schemes, .multiple = 32, .share = 30});
  ExportOptions version2;
  version2.gptq_version = 2;
  sample::expect_round_trips("gptq", {.schemes = zeros, .multiple = 32, .share = 30},
                             version2);
  // By itself: version 1 or 2, after the zero points that there are; act-order.
  schemes.insert(schemes.end(), zeros.begin(), zeros.end());
  sample::expect_round_trips(
      "gptq", {.schemes = schemes, .multiple = 32, .permuted = true, .share = 40});
}

// Weights of several tiles, the last of each side not full: every word by the format's
// definition.
TEST_F(HfQuantized, WordsOfManyTilesAreTheDefinitions) {
  sample::LlamaSize size;
  size.hidden = 584;
  size.intermediate = 1032;
  size.layers = 1;
  size.tied = false;
  const Artifact artifact =
      sample::quantized(sample::llama(size, 3), "uint4/g8@f16+z/g8@uint4", is_linear);
  const auto word = [](const Tensor& words, int64_t i) {
    uint32_t value;
    std::memcpy(&value, words.bytes.data() + 4 * i, 4);
    return value;
  };
  for (const std::string format : {"gptq", "awq"}) {
    const Status status = write(format, artifact);
    ASSERT_TRUE(status.ok()) << status.message();
    const auto stored = tensors();
    for (const char* layer : {"up_proj", "down_proj"}) {  // [1032, 584] and [584, 1032]
      const std::string module = cat("model.layers.0.mlp.", layer);
      const CodedMatrix q = take(unpack(artifact.packed.at(module + ".weight")));
      const Tensor& words = stored.at(module + ".qweight");
      int64_t wrong = 0;
      for (int64_t n = 0; n < q.rows; ++n) {
        for (int64_t k = 0; k < q.cols; ++k) {
          const int place[] = {0, 4, 1, 5, 2, 6, 3, 7};
          const uint32_t code =
              format == "gptq"
                  ? word(words, k / 8 * q.rows + n) >> (4 * (k % 8)) & 15
                  : word(words, k * (q.rows / 8) + n / 8) >> (4 * place[n % 8]) & 15;
          wrong += code != q.codes[static_cast<size_t>(n * q.cols + k)];
        }
      }
      EXPECT_EQ(wrong, 0) << format << " " << module;
    }
  }
}

// Rows and columns that fill no tile, 4 bits.
TEST_F(HfQuantized, OddSizesRoundTrip) {
  sample::expect_round_trips(
      "gptq",
      {.schemes = {"int4/r@f16", "uint4/g8@f16+z/g8@uint4"}, .multiple = 8, .share = 20});
  sample::expect_round_trips(
      "gptq", {.schemes = {"int4/g8@f16"}, .multiple = 8, .permuted = true, .share = 10});
}

TEST_F(HfQuantized, AwqRoundTrips) {
  sample::expect_round_trips("awq",
                             {.schemes = {"int4/g16@f16", "uint4/g16@f16+z/g16@uint4"},
                              .multiple = 16,
                              .share = 50});
  sample::expect_round_trips(
      "awq",
      {.schemes = {"uint4/r@f16+z/r@uint4", "int4n/r@f16"}, .multiple = 8, .share = 50});
}

TEST_F(HfQuantized, BitsandbytesRoundTrips) {
  for (const char* code : {"nf4", "fp4"}) {
    const auto scheme = [&](const char* blocks) { return cat(code, blocks); };
    // Blocks run over the ends of rows.
    sample::expect_round_trips(
        "bitsandbytes",
        {.schemes = {scheme("/f64@f32"), scheme("/f32@f16"),
                     scheme("/f64@dyn8+o/f16384@f32"), scheme("/f128@dyn8+o/f32768@f32")},
         .share = 40});
    sample::expect_round_trips(
        "bitsandbytes", {.schemes = {scheme("/g32@bf16")}, .multiple = 32, .share = 10});
  }
}

TEST_F(HfQuantized, LlmInt8RoundTrips) {
  sample::expect_round_trips("bitsandbytes",
                             {.schemes = {"int8n/r@f32", "int8/r@f16", "int8n/g512@bf16"}});
}

TEST_F(HfQuantized, BlockFp8RoundTrips) {
  sample::expect_round_trips("fp8", {.schemes = {"e4m3/b16x32@f32"}, .share = 50});
  sample::expect_round_trips("fp8", {.schemes = {"e4m3/b128x128@bf16"}, .share = 50});
}

TEST_F(HfQuantized, Fp8AndLlmInt8SayFirstWhatTheyCannotHold) {
  const auto refused = [&](const char* format, const sample::RandomModel& model) {
    return refusal(format, sample::random_model(3, model));
  };
  EXPECT_THAT(refused("fp8", {.schemes = {"e4m3/r@f32"}}),
              HasSubstr("uses e4m3/r@f32; the format holds e4m3 with a float scale a grid"));
  EXPECT_THAT(refused("fp8", {.schemes = {"e4m3/b16x16@f32"}, .input = "e4m3/r@f32"}),
              HasSubstr("inputs without a scheme and columns in their own order are required; "
                        "found e4m3/r@f32"));
  EXPECT_THAT(refused("bitsandbytes", {.schemes = {"int8n/g16@f32"}, .multiple = 32}),
              HasSubstr("of 8 bits bitsandbytes has int8 with a float scale a row"));
  EXPECT_THAT(refused("bitsandbytes", {.schemes = {"int8n/r@f32"}, .input = "e4m3/r@f32"}),
              HasSubstr("inputs must be float or dynamic int8"));
}

TEST_F(HfQuantized, GptqSaysWhatDiffersFromTheUsual) {
  const sample::LlamaSize size{
      .vocabulary = 64, .hidden = 64, .head_dim = 16, .intermediate = 96, .tied = false};
  Artifact artifact =
      sample::quantized(sample::llama(size, 71), "int4/g32@f16", [](const Node& node) {
        return is_linear(node) && node.name != "lm_head" &&
               node.name != "model.layers.0.mlp.up_proj";
      });
  const Artifact eight = sample::quantized(sample::llama(size, 71), "int8n/r@f16");
  const std::string other = "model.layers.1.mlp.down_proj.weight";
  artifact.packed[other] = eight.packed.at(other);
  artifact.layers[other] = eight.layers.at(other);
  ASSERT_TRUE(write("gptq", artifact).ok());
  const Json json = config();
  EXPECT_EQ(json.at("bits"), 4);
  EXPECT_EQ(json.at("group_size"), 32);
  EXPECT_EQ(json.at("sym"), true);
  EXPECT_EQ(json.at("desc_act"), false);
  EXPECT_EQ(json.at("lm_head"), false);
  EXPECT_EQ(json.at("checkpoint_format"), "gptq");
  EXPECT_EQ(json.at("dynamic"),
            Json({{"+:^model\\.layers\\.1\\.mlp\\.down_proj$",
                   {{"bits", 8}, {"group_size", -1}, {"sym", true}}},
                  {"-:^model\\.layers\\.0\\.mlp\\.up_proj$", Json::object()}}));
  EXPECT_EQ(
      parse_json_or_throw(take(read_text_file(directory_ / "quantize_config.json"))),
      json);
  EXPECT_TRUE(check_decoded(artifact, take(read("gptq"))).ok());
}

TEST_F(HfQuantized, ListsOfModulesThatStayFloat) {
  const sample::LlamaSize size{
      .vocabulary = 64, .hidden = 64, .head_dim = 16, .intermediate = 64, .tied = false};
  const auto but_head = [](const Node& node) {
    return is_linear(node) && node.name != "lm_head";
  };
  ASSERT_TRUE(
      write("awq", sample::quantized(sample::llama(size, 72), "int4/g32@f16", but_head))
          .ok());
  EXPECT_EQ(config(), Json({{"quant_method", "awq"},
                            {"zero_point", true},
                            {"group_size", 32},
                            {"bits", 4},
                            {"version", "gemm"},
                            {"modules_to_not_convert", {"lm_head"}}}));
  ASSERT_TRUE(
      write("bitsandbytes", sample::quantized(sample::llama(size, 72),
                                              "nf4/f64@dyn8+o/f16384@f32", but_head))
          .ok());
  EXPECT_EQ(config().at("llm_int8_skip_modules"), Json({"lm_head"}));
  EXPECT_EQ(config().at("bnb_4bit_use_double_quant"), true);
  EXPECT_EQ(config().at("bnb_4bit_quant_type"), "nf4");
  const std::string state(
      tensors()
          .at("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4")
          .bytes.text());
  EXPECT_THAT(state, ::testing::StartsWith(
                         "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": "
                         "\"float32\", \"shape\": [64, 64], \"nested_blocksize\": 256, "
                         "\"nested_dtype\": \"float32\", \"nested_offset\": 0."));
}

// A block of zeros has a scale of 0 there and of 1 here.
TEST_F(HfQuantized, BitsandbytesBlocksOfZeros) {
  const Artifact artifact =
      sample::random_model(5, {.schemes = {"nf4/f32@f32"}, .multiple = 32, .most = 64});
  ASSERT_TRUE(write("bitsandbytes", artifact).ok());
  auto stored = tensors();
  const std::string weight = "layers.0.proj.weight";
  std::vector<float> absmax = take(to_float(stored.at(weight + ".absmax")));
  absmax[0] = 0;
  stored[weight + ".absmax"] =
      make_tensor({static_cast<int64_t>(absmax.size())}, std::span<const float>(absmax));
  ASSERT_TRUE(
      write_safetensors_atomically(directory_ / "model.safetensors", stored, {}).ok());
  const CodedMatrix q = take(read("bitsandbytes")).coded.at(weight);
  EXPECT_EQ(q.scales[0].values[0], 1.0f);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(value_of(q.scheme.code, q.codes[i]), 0.0f);
  EXPECT_NE(value_of(q.scheme.code, q.codes[32]), 0.0f);
}

TEST_F(HfQuantized, GptqSaysFirstWhatItCannotHold) {
  const sample::LlamaSize size{
      .vocabulary = 64, .hidden = 64, .head_dim = 16, .intermediate = 96, .tied = false};
  const Artifact floats = sample::llama(size, 73);
  const auto quantized = [&](const char* scheme) {
    return sample::quantized(floats, scheme, is_linear);
  };
  const std::string first = "[gptq] lm_head.weight: ";
  EXPECT_EQ(refusal("gptq", quantized("int5/g32@f16")),
            first +
                "uses int5/g32@f16; GPTQ holds integers of 2, 3, 4 or 8 bits; quantize "
                "with one of these");
  EXPECT_EQ(refusal("gptq", quantized("nf4/f64@f32")),
            first +
                "uses nf4/f64@f32; GPTQ holds integers of 2, 3, 4 or 8 bits; quantize "
                "with one of these");
  EXPECT_EQ(refusal("gptq", quantized("int4/t@f16")),
            first +
                "uses int4/t@f16; the format has a scale a row or a group of columns; "
                "quantize so");
  EXPECT_THAT(
      refusal("gptq", quantized("int4/g32@f32")),
      ::testing::AllOf(HasSubstr(first + "row 0, group 0: scales must be f16 numbers; "
                                         "found "),
                       HasSubstr("a number of f32; quantize with --set scale=f16")));
  EXPECT_EQ(refusal("gptq", quantized("uint4/g32@f16+m/g32@f16")),
            first +
                "uses uint4/g32@f16+m/g32@f16; the format has integer zero points of the "
                "codes' own bits, one a scale; quantize so");
  const Artifact odd = sample::quantized(sample::llama({.vocabulary = 64,
                                                        .hidden = 44,
                                                        .heads = 2,
                                                        .kv_heads = 1,
                                                        .head_dim = 22,
                                                        .intermediate = 96,
                                                        .tied = false},
                                                       73),
                                         "int4/r@f16", is_linear);
  EXPECT_EQ(refusal("gptq", odd),
            first +
                "its 44 columns of 4 bits must fill whole 32-bit words, multiples of 8; "
                "export to compressed-tensors");
  Artifact inputs = quantized("int8n/r@f16");
  inputs.layers.at("lm_head.weight").input =
      ActivationScheme{take(parse_scheme("int8n/r@f32")), true, 0, 0};
  EXPECT_EQ(refusal("gptq", inputs),
            "[gptq] the input of lm_head.weight: activations must be float; found "
            "int8n/r@f32; export to compressed-tensors, or leave the input float");
}

TEST_F(HfQuantized, AwqAndBitsandbytesSayFirstWhatTheyCannotHold) {
  const sample::LlamaSize size{
      .vocabulary = 64, .hidden = 64, .head_dim = 16, .intermediate = 96, .tied = false};
  const auto quantized = [&](const char* scheme) {
    return sample::quantized(sample::llama(size, 74), scheme, is_linear);
  };
  EXPECT_EQ(
      refusal("awq", quantized("int8/g32@f16")),
      "[awq] lm_head.weight: uses int8/g32@f16; AWQ holds 4-bit integers; quantize with "
      "these, or export to compressed-tensors");
  EXPECT_EQ(
      refusal("awq", quantized("int4/g64@f16")),
      "[awq] model.layers.0.mlp.down_proj.weight: its 96 columns must be whole groups "
      "of 64; use a group that divides them");
  Artifact mixed = quantized("int4/g32@f16");
  const Artifact rows = quantized("int4/r@f16");
  const std::string other = "model.layers.1.mlp.up_proj.weight";
  mixed.packed[other] = rows.packed.at(other);
  mixed.layers[other] = rows.layers.at(other);
  EXPECT_EQ(refusal("awq", mixed),
            "[awq] " + other +
                ": all layers must share the group of lm_head.weight, 32; found "
                "-1; export to gptq or compressed-tensors");
  EXPECT_EQ(
      refusal("bitsandbytes", quantized("int4/g32@f16")),
      "[bitsandbytes] lm_head.weight: uses int4/g32@f16; bitsandbytes has codes of "
      "nf4, fp4 and int8; quantize so");
  EXPECT_EQ(
      refusal("bitsandbytes", quantized("nf4/f48@f32")),
      "[bitsandbytes] lm_head.weight: uses nf4/f48@f32; bitsandbytes has scales of 32 to "
      "4096 elements of the flattened tensor, a power of two; quantize so");
  EXPECT_EQ(
      refusal("bitsandbytes", quantized("nf4/f64@dyn8+o/f1024@f32")),
      "[bitsandbytes] lm_head.weight: uses nf4/f64@dyn8+o/f1024@f32; bitsandbytes has "
      "float scales, or dyn8 ones with an offset under f32 ones of 256 blocks; quantize "
      "so");
}

TEST_F(HfQuantized, DamageIsNamed) {
  const std::string layer = "layers.0.proj";
  const sample::RandomModel gptq{.schemes = {"uint4/g32@f16+z/g32@uint4"},
                                 .multiple = 32};
  using Tensors = std::map<std::string, Tensor>;
  for (const char* format : {"gptq", "awq"}) {
    ASSERT_TRUE(write(format, sample::random_model(9, gptq)).ok());
    EXPECT_THAT(damage(format, [&](Json&, Tensors& t) { t.erase(layer + ".scales"); }),
                HasSubstr(cat("[", format,
                              "] layers.0.proj.scales: must be there, F16 or BF16 "
                              "or F32 [")));
    EXPECT_THAT(damage(format, [&](Json&, Tensors& t) { t.erase(layer + ".qzeros"); }),
                HasSubstr("layers.0.proj.qzeros: must be there, I32 ["));
    EXPECT_THAT(damage(format, [&](Json& c, Tensors&) { c["group_size"] = 64; }),
                HasSubstr("must be "));
    EXPECT_THAT(damage(format, [&](Json& c, Tensors&) { c["group_size"] = 0; }),
                HasSubstr("found 4 bits"));
    EXPECT_THAT(damage(format, [&](Json& c, Tensors&) { c["bits"] = "four"; }),
                HasSubstr("quantization_config must have the fields of the format"));
  }
  EXPECT_THAT(damage("awq", [&](Json& c, Tensors&) { c["version"] = "gemv"; }),
              HasSubstr("4 bits in the layout gemm are read; found 4 bits in gemv"));
  ASSERT_TRUE(write("gptq", sample::random_model(9, gptq)).ok());
  EXPECT_THAT(
      damage("gptq", [&](Json& c, Tensors&) { c["checkpoint_format"] = "marlin"; }),
      HasSubstr("the formats gptq, gptq_v2 and gptq_p are read; found marlin"));
  EXPECT_THAT(damage("gptq",
                     [&](Json&, Tensors& t) {
                       Tensor& index = t.at(layer + ".g_idx");
                       index = make_tensor(index.shape,
                                           std::vector<int32_t>(index.shape[0], 0));
                     }),
              HasSubstr("g_idx: groups of 32 columns each are read; found others"));
  ASSERT_TRUE(
      write("bitsandbytes", sample::random_model(9, {.schemes = {"nf4/f64@f32"}})).ok());
  const std::string weight = layer + ".weight";
  EXPECT_THAT(
      damage("bitsandbytes", [&](Json&, Tensors& t) { t.erase(weight + ".absmax"); }),
      HasSubstr("layers.0.proj.weight.absmax: must be there, F32 ["));
  EXPECT_THAT(damage("bitsandbytes",
                     [&](Json&, Tensors& t) {
                       t[weight + ".quant_map"] =
                           make_tensor({16}, std::vector<float>(16, 1));
                     }),
              HasSubstr("the table of nf4 is read; found another"));
  EXPECT_THAT(
      damage("bitsandbytes", [&](Json& c, Tensors&) { c["load_in_4bit"] = false; }),
      HasSubstr("checkpoints that are load_in_4bit or load_in_8bit are read"));
}

}  // namespace
}  // namespace nibble
