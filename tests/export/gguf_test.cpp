// GGUF files: what holds which codes, what is written and read back, what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "export/exporter.h"
#include "export/gguf/gguf_model.h"
#include "export/gguf/hold.h"
#include "export/gguf/metadata_writer.h"
#include "kernels/program/rope_attributes.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "recipes/models/load_model.h"
#include "tests/export/sample_models.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

using testing::HasSubstr;
using testing::StartsWith;
namespace fs = std::filesystem;
using sample::take;

const fs::path kData = fs::path(NIBBLE_SOURCE_DIR) / ".." / "shared" / "data";

std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

TEST(GgufMetadataWriter, TheExampleFile) {
  if (!fs::exists(kData / "golden/mini.gguf")) GTEST_SKIP() << "needs the shared data";
  const std::string expected = slurp(kData / "golden/mini.gguf");
  GgufMetadataWriter keys;
  keys.text("general.architecture", "llama");
  keys.number("general.alignment", 32);
  const std::string header =
      keys.finish({{"a.weight", {4, 2}, 0, 32}, {"b", {3}, 0, 12}});
  EXPECT_EQ(header, expected.substr(0, header.size()));
  EXPECT_EQ(header.size() + 64, expected.size());
}

// --- hold_exactly

CodedMatrix coded(const std::string& scheme, int64_t rows, int64_t cols, uint64_t seed) {
  SplitMix64 random(seed);
  const Tensor tensor = sample::random_tensor({rows, cols}, 1.0, random);
  const std::vector<float> values = take(to_float(tensor));
  const MatrixView<const float> x(values.data(), rows, cols);
  CodedMatrix q = take(choose_scales(x, take(parse_scheme(scheme)), ScaleRule{}));
  const Status status = quantize(x, q);
  EXPECT_TRUE(status.ok()) << status.message();
  return q;
}
std::vector<float> values_of(const CodedMatrix& q) {
  std::vector<float> values(static_cast<size_t>(q.rows * q.cols));
  EXPECT_TRUE(dequantize(q, MatrixView<float>(values.data(), q.rows, q.cols)).ok());
  return values;
}

struct Held {
  const char* scheme;
  const char* type;
};
const Held kHeld[] = {
    {"int4/g32@f16", "Q4_0"},
    {"int4/g128@f16", "Q4_0"},
    {"int4n/g64@f16", "Q4_0"},
    {"int3/r@f16", "Q4_0"},
    {"int2/t@f16", "Q4_0"},
    {"int4/f64@f16", "Q4_0"},
    {"int4/b16x64@f16", "Q4_0"},
    {"int4/g32@e4m3/t@bf16", nullptr},  // products that are no halves
    {"uint2/g64@f16+z/g64@uint2", "Q4_0"},
    {"uint3/g64@f16+z/g64@uint3", "Q4_0"},
    {"uint4/g128@f16+z/g128@uint4", "Q5_0"},
    {"int5/g32@f16", "Q5_0"},
    {"int6/g128@f16", "Q8_0"},
    {"int8n/r@f16", "Q8_0"},
    {"int8/g32@f16", "Q8_0"},
    {"ternary/g256@f16", "TQ2_0"},
    {"ternary/g64@f16", "Q4_0"},
    {"binary/r@f16", "Q4_0"},
    {"uint4/g32@f16+m/g32@f16", "Q4_1"},
    {"uint3/g64@f16+m/g64@f16", "Q4_1"},
    {"uint5/r@f16+m/r@f16", "Q5_1"},
    {"e2m1/g32@e8m0", "MXFP4"},
    {"e2m1/g64@e8m0", "MXFP4"},
    {"iq4nl/g128@f16", "IQ4_NL"},
    {"uint2/g16@uint4/g256@f16+m/g16@uint4/g256@f16", "Q2_K"},
    {"int3/g16@int6/g256@f16", "Q3_K"},
    {"uint4/g32@uint6/g256@f16+m/g32@uint6/g256@f16", "Q4_K"},
    {"uint5/g32@uint6/g256@f16+m/g32@uint6/g256@f16", "Q5_K"},
    {"int6/g16@int8/g256@f16", "Q6_K"},
};

TEST(GgufHold, TheNarrowestTypeThatHasEveryValue) {
  for (const Held& row : kHeld) {
    const CodedMatrix q = coded(row.scheme, 16, 512, 3);
    const auto held = hold_exactly(q);
    if (row.type == nullptr) {
      EXPECT_EQ(held.status().code(), StatusCode::unsupported) << row.scheme;
      continue;
    }
    ASSERT_TRUE(held.ok()) << row.scheme << ": " << held.status().message();
    EXPECT_STREQ(held->type->name, row.type) << row.scheme;
    EXPECT_EQ(values_of(held->q), values_of(q)) << row.scheme;
  }
}

TEST(GgufHold, SaysWhatIsLacking) {
  const auto message = [](const char* scheme, int64_t cols) {
    return hold_exactly(coded(scheme, 4, cols, 5)).status().message();
  };
  EXPECT_EQ(message("int4/g48@f16", 96), "uses int4/g48@f16; GGUF has no block of 48");
  EXPECT_EQ(
      message("int4/g32@f16", 172),
      "uses int4/g32@f16; GGUF needs rows of whole blocks of 32; found 172 columns");
  EXPECT_EQ(message("int4/c@f16", 64), "uses int4/c@f16; GGUF has no scale a column");
  EXPECT_EQ(message("nf4/g64@f16", 64),
            "uses nf4/g64@f16; GGUF has no type with nf4 codes");
  EXPECT_EQ(message("e4m3/r@f32", 64),
            "uses e4m3/r@f32; GGUF has no type with e4m3 codes");
  EXPECT_THAT(message("uint8/r@f16+z/r@uint8", 64),
              HasSubstr("its codes run from -255 to 255; the widest type of GGUF, Q8_0, "
                        "from -128 to 127"));
  EXPECT_THAT(message("uint6/g32@f16+m/g32@f16", 64),
              HasSubstr("minima for unsigned codes of at most 5 bits only"));
  EXPECT_THAT(message("int8n/r@f32", 64),
              HasSubstr("uses int8n/r@f32; Q8_0 has f16 scales; "
                        "the scale of row 0, column 0 is 0.0"));
  EXPECT_THAT(message("int6/g16@int8/g256@f16", 288),
              HasSubstr("Q6_K needs rows of whole blocks of 256; found 288 columns"));
  EXPECT_THAT(message("nf4/f64@dyn8+o/f16384@f32", 64), HasSubstr("no type with nf4"));
}

// --- files

sample::LlamaSize small() {
  return {.vocabulary = 96,
          .hidden = 64,
          .heads = 4,
          .kv_heads = 2,
          .head_dim = 16,
          .intermediate = 256,
          .layers = 2,
          .context = 64};
}

class GgufFiles : public testing::Test, public TemporaryDirectory {
 protected:
  fs::path file() const { return path() / "model.gguf"; }
  // Written, read by the format's reader and compared with the artifact.
  void round_trip(const Artifact& artifact, ExportOptions options = {}) {
    options.overwrite = true;
    const Exporter& gguf = *take(find_exporter("gguf"));
    const Status can = gguf.can_express(artifact, options);
    ASSERT_TRUE(can.ok()) << can.message();
    const Status written = gguf.write(artifact, file(), options);
    ASSERT_TRUE(written.ok()) << written.message();
  }
  std::string refusal(const Artifact& artifact, const ExportOptions& options = {}) {
    const Status status = take(find_exporter("gguf"))->can_express(artifact, options);
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(take(find_exporter("gguf"))->write(artifact, file(), options).message(),
              status.message());
    EXPECT_FALSE(fs::exists(file()));
    return status.message();
  }
  static void expect_near(const std::vector<float>& a, const std::vector<float>& b,
                          const std::string& what) {
    double worst = 0, largest = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      worst = std::max(worst, std::abs(static_cast<double>(a[i]) - b[i]));
      largest = std::max(largest, std::abs(static_cast<double>(b[i])));
    }
    EXPECT_LE(worst, 1e-5 * largest) << what;
  }
  static std::vector<float> logits(const Artifact& artifact) {
    Executor executor = take(
        Executor::create(std::make_shared<const Artifact>(artifact), ExecutorOptions{}));
    const std::vector<int32_t> ids = {1, 5, 90, 3, 44, 17, 2, 60};
    const int64_t count = static_cast<int64_t>(ids.size());
    auto cache = take(executor.make_cache(count));
    std::vector<float> out(ids.size() * static_cast<size_t>(artifact.program.vocabulary));
    const Status status = executor.forward(
        ids, *cache, MatrixView<float>(out.data(), count, artifact.program.vocabulary));
    EXPECT_TRUE(status.ok()) << status.message();
    return out;
  }
};

// Halves or pairs, tied or not, with biases: what is loaded gives the same logits.
TEST_F(GgufFiles, AFloatModelComesBack) {
  for (const bool interleaved : {false, true}) {
    for (const bool tied : {false, true}) {
      sample::LlamaSize size = small();
      size.interleaved = interleaved;
      size.tied = tied;
      size.bias = !tied;
      const Artifact artifact = sample::llama(size, 11);
      round_trip(artifact);
      const Artifact loaded = take(load_model(file(), {}));
      EXPECT_EQ(loaded.program.architecture, "LlamaForCausalLM");
      EXPECT_FALSE(loaded.is_quantized());
      if (interleaved) {  // rows lie otherwise then, and sums over a head run otherwise
        expect_near(logits(loaded), logits(artifact), "interleaved");
      } else {
        EXPECT_EQ(logits(loaded), logits(artifact)) << tied;
      }
      const auto decoded = take(find_exporter("gguf"))->read(file());
      ASSERT_TRUE(decoded.ok()) << decoded.status().message();
      if (!interleaved) {
        const Status same = check_decoded(artifact, *decoded);
        EXPECT_TRUE(same.ok()) << same.message();
      }
    }
  }
}

TEST_F(GgufFiles, QuantizedModelsComeBackWithTheirCodes) {
  for (const char* scheme :
       {"int4/g32@f16", "int4/g64@f16", "int8/g32@f16", "uint4/g32@f16+m/g32@f16",
        "int5/g32@f16", "uint5/g32@f16+m/g32@f16", "iq4nl/g32@f16", "e2m1/g32@e8m0",
        "ternary/g32@f16"}) {
    const Artifact artifact = sample::quantized(sample::llama(small(), 5), scheme);
    round_trip(artifact);
    const auto decoded = take(find_exporter("gguf"))->read(file());
    ASSERT_TRUE(decoded.ok()) << decoded.status().message();
    const bool translated = std::string_view(scheme).substr(0, 7) == "ternary";
    if (!translated) {  // else the codes are others, the values equal (write proves it)
      const Status same = check_decoded(artifact, *decoded);
      EXPECT_TRUE(same.ok()) << scheme << ": " << same.message();
    }
    const Artifact loaded = take(load_model(file(), {}));
    EXPECT_TRUE(loaded.is_quantized());
    EXPECT_EQ(loaded.ledger.find("model.layers.0.self_attn.q_proj.weight")->method,
              kImported);
    expect_near(logits(artifact), logits(loaded), scheme);  // sums of other groups
  }
}

// rope_freqs has divisors alone: what made them is found again.
TEST_F(GgufFiles, RopeScalingComesBack) {
  const RopeShape llama3 = {.head_dim = 16,
                            .theta = 500000,
                            .scaling = "llama3",
                            .factor = 32,
                            .low_frequency_factor = 1,
                            .high_frequency_factor = 4,
                            .original_context = 8192};
  RopeShape other = llama3;  // several pairs between the bounds
  other.theta = 10000;
  other.factor = 6;
  other.low_frequency_factor = 1.5;
  other.high_frequency_factor = 600;
  RopeShape linear = {.head_dim = 16, .theta = 10000, .scaling = "linear", .factor = 2.5};
  for (const RopeShape& rope : {llama3, other, linear}) {
    Artifact artifact = sample::llama(small(), 5);
    for (Node& node : artifact.program.nodes) {
      if (node.op != "rope") continue;
      node.attributes = rope_attributes(rope);
      node.attributes["interleaved"] = int64_t{0};
    }
    round_trip(artifact);
    const Artifact loaded = take(load_model(file(), {}));
    const Node* node = loaded.program.find("model.layers.1.self_attn.q_rope");
    ASSERT_NE(node, nullptr);
    EXPECT_TRUE(rope_shape(*node) == rope)
        << rope.scaling << " " << rope.high_frequency_factor << ": "
        << rope_shape(*node).low_frequency_factor << " "
        << rope_shape(*node).high_frequency_factor;
    EXPECT_EQ(logits(loaded), logits(artifact)) << rope.scaling;
  }
}

TEST_F(GgufFiles, EqualBytesTwiceAndInADirectory) {
  const Artifact artifact = sample::quantized(sample::llama(small(), 5), "int4/g32@f16");
  round_trip(artifact);
  const std::string first = slurp(file());
  round_trip(artifact);
  EXPECT_EQ(slurp(file()), first);
  const Status written =
      take(find_exporter("gguf"))->write(artifact, path() / "folder", {});
  ASSERT_TRUE(written.ok()) << written.message();
  EXPECT_EQ(slurp(path() / "folder/model.gguf"), first);
  EXPECT_TRUE(load_model(path() / "folder", {}).ok());
  const Status there = take(find_exporter("gguf"))->write(artifact, file(), {});
  EXPECT_EQ(there.code(), StatusCode::already_exists);
}

TEST_F(GgufFiles, RequantizedByGgmlsRules) {
  const Artifact artifact = sample::llama(small(), 5);
  ExportOptions options;
  options.requantize = {"Q4_K", "*.v_proj=Q8_0", "model.embed_tokens=Q6_K"};
  round_trip(artifact, options);
  const GgufModel model = take(open_gguf_model(file()));
  const auto type = [&](const char* name) { return model.file.find(name)->type->name; };
  EXPECT_STREQ(type("blk.1.ffn_down.weight"), "Q4_K");  // rows of 256
  EXPECT_STREQ(type("blk.1.ffn_up.weight"), "Q5_0");    // of 64: Q4_K's fallback
  EXPECT_STREQ(type("blk.1.attn_v.weight"), "Q8_0");
  EXPECT_STREQ(type("token_embd.weight"), "Q8_0");  // Q6_K's fallback
  EXPECT_STREQ(type("blk.1.ffn_norm.weight"), "F32");
  EXPECT_EQ(gguf_type_counts(model.file),
            "Q5_0 10 tensors, F32 5 tensors, Q8_0 3 "
            "tensors, Q4_K 2 tensors");
  EXPECT_TRUE(load_model(file(), {}).ok());

  // What a block holds is kept unless its name is asked for.
  const Artifact w4 = sample::quantized(
      artifact, "int4/g32@f16", [](const Node& node) { return node.op == "linear"; });
  options.requantize = {"Q8_0", "*.down_proj=Q5_1"};
  round_trip(w4, options);
  const GgufFile kept = take(open_gguf(file()));
  EXPECT_STREQ(kept.find("blk.0.attn_q.weight")->type->name, "Q4_0");
  EXPECT_STREQ(kept.find("blk.0.ffn_down.weight")->type->name, "Q5_1");
}

TEST_F(GgufFiles, FloatsAreRoundedAsAsked) {
  const Artifact artifact = sample::llama(small(), 5);
  ExportOptions options;
  options.dtype = "bf16";
  round_trip(artifact, options);
  const GgufFile rounded = take(open_gguf(file()));
  EXPECT_STREQ(rounded.find("blk.0.attn_q.weight")->type->name, "BF16");
  EXPECT_STREQ(rounded.find("output_norm.weight")->type->name, "F32");
  Artifact large = artifact;
  std::vector<float> values = take(to_float(large.tensors["model.embed_tokens.weight"]));
  values[70] = 1e5f;
  large.tensors["model.embed_tokens.weight"] =
      make_tensor({96, 64}, std::span<const float>(values));
  options.dtype = "f16";
  options.overwrite = true;
  const Status status = take(find_exporter("gguf"))->write(large, file(), options);
  EXPECT_EQ(status.code(), StatusCode::out_of_range);
  EXPECT_EQ(status.message(),
            "[gguf] model.embed_tokens.weight: every value must fit F16; found 100000 at "
            "index 70; use --dtype bf16 or f32");
}

TEST_F(GgufFiles, SaysWhatItCannotHold) {
  const Artifact artifact = sample::llama(small(), 5);
  const Artifact g48 = sample::quantized(artifact, "int4/g48@f16", [](const Node& node) {
    return node.name == "model.layers.1.mlp.down_proj";
  });
  EXPECT_EQ(
      refusal(g48),
      "[gguf] model.layers.1.mlp.down_proj.weight uses int4/g48@f16; GGUF has no "
      "block of 48; quantize it again with --requantize TYPE (Q4_0, Q8_0, F16 ...)");
  ExportOptions options;
  options.requantize = {"Q4_0"};
  round_trip(g48, options);
  fs::remove(file());
  options.requantize = {"Q9_9"};
  EXPECT_THAT(refusal(artifact, options), StartsWith("[ggml] type: must be one of F32"));
  options.requantize = {"*.dwon_proj=Q4_0"};
  EXPECT_THAT(refusal(artifact, options),
              StartsWith("[gguf] requantize: a pattern must match a layer; found "
                         "`*.dwon_proj`, which matches none of model.embed_tokens"));
  options = {};
  options.dtype = "f64";
  EXPECT_EQ(refusal(artifact, options),
            "[gguf] dtype: must be one of f32, bf16, f16; found `f64`");
  EXPECT_THAT(refusal(sample::residual_net(1)),
              StartsWith("[gguf] ResNetCIFAR: a decoder of LlamaForCausalLM, "));
  Artifact dynamic = sample::quantized(artifact, "int8/g32@f16");
  ActivationScheme input;
  input.scheme = take(parse_scheme("int8n/r@f32"));
  input.dynamic = true;
  dynamic.layers["model.layers.0.mlp.up_proj.weight"].input = input;
  EXPECT_THAT(refusal(dynamic),
              StartsWith("[gguf] the input of model.layers.0.mlp.up_proj.weight: "));
  Artifact windows = artifact;
  for (Node& node : windows.program.nodes) {
    if (node.name == "model.layers.1.self_attn.attention")
      node.attributes["window"] = int64_t{4};
  }
  EXPECT_THAT(refusal(windows),
              HasSubstr("one sliding window for all layers was required; "
                        "found 4 beside 0"));
  Artifact ropes = artifact;
  for (Node& node : ropes.program.nodes) {
    if (node.op == "rope" && node.block == 1) node.attributes["theta"] = 5.0;
  }
  EXPECT_THAT(refusal(ropes), HasSubstr("one rope for all layers was required"));
}

}  // namespace
}  // namespace nibble
