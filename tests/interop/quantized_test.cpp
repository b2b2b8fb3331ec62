// What other programs make of our quantized Hugging Face directories: transformers with
// compressed-tensors and bitsandbytes gives our logits; compressed-tensors (also for
// AWQ), bitsandbytes and, for GPTQ, numpy give our weights.
#include "export/exporter.h"
#include "kernels/artifact/safetensors.h"
#include "tests/interop/transformers.h"

namespace nibble::transformers {
namespace {

// f32 sums in another order; 1e-6 is what was measured.
constexpr double kLogits = 1e-4;
// Codes of activations are chosen by another rule (amax / 127.5 there, amax / 127 here),
// so that most differ by a rounding: 0.039 was measured on these random weights. The
// weights themselves are compared exactly, above.
constexpr double kIntegerInputs = 0.08;

struct Case {
  const char* format;
  const char* scheme;
  const char* input = "";  // of every layer
  bool loads = true;       // transformers does
  const char* other = "";  // of down_proj layers
  const char* cache = "";  // of keys and values
};

// transformers loads GPTQ and AWQ with packages that need a GPU's toolkit to build, and
// has a fault of its own with packed zero points; FP4 weights come out of
// compressed-tensors in bf16, which a float32 model does not multiply (transformers 5.23,
// compressed-tensors 0.20).
const Case kCases[] = {
    {"compressed-tensors", "int4/g32@f16"},
    {"compressed-tensors", "int3/g16@f32"},
    {"compressed-tensors", "int8n/r@f32"},
    {"compressed-tensors", "int4/g32@bf16", "", true, "int8n/r@f32"},
    {"compressed-tensors", "uint4/g32@f16+z/g32@uint4", "", false},
    {"compressed-tensors", "uint5/r@f32+z/r@uint5", "", false},
    {"compressed-tensors", "int8n/r@f32", "int8n/r@f32"},
    {"compressed-tensors", "int4/g32@f32", "int8n/r@f32"},
    {"compressed-tensors", "e4m3/r@f32"},
    {"compressed-tensors", "e4m3/r@f32", "e4m3/r@f32"},
    {"compressed-tensors", "e4m3/t@f32", "e4m3/t@f32"},
    {"compressed-tensors", "e4m3/t@bf16"},
    {"compressed-tensors", "e4m3/b16x32@f32"},
    {"compressed-tensors", "int4/g32@f32", "", true, "", "e4m3/t@f32=0.01"},
    {"compressed-tensors", "int4/g32@f32", "", true, "",
     "int8/t@f32=0.03,int8/t@f32=0.02"},
    {"gptq", "int4/g32@f16", "", false, "int8n/r@f16"},
    {"gptq", "uint4/g32@f16+z/g32@uint4", "", false},
    {"gptq", "uint3/g32@f16+z/g32@uint3", "", false},
    {"gptq", "int2/r@f16", "", false},
    {"awq", "uint4/g32@f16+z/g32@uint4", "", false},
    {"awq", "int4/g16@f16", "", false},
    {"compressed-tensors", "e2m1/g32@e8m0", "", false},
    {"compressed-tensors", "e2m1/g16@e4m3/t@f32", "", false},
    {"bitsandbytes", "int8n/r@f32", "", false},
    {"bitsandbytes", "nf4/f64@f32"},
    {"bitsandbytes", "nf4/f64@dyn8+o/f16384@f32"},
    {"bitsandbytes", "fp4/f64@dyn8+o/f16384@f32"},
};

bool stores_another_scale(const Case& c) {
  return std::string_view(c.scheme) == "e2m1/g16@e4m3/t@f32" ||
         (std::string_view(c.format) == "bitsandbytes" &&
          std::string_view(c.scheme) == "int8n/r@f32");
}

constexpr const char* kConfig =
    R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":96,
        "hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,
        "num_attention_heads":4,"num_key_value_heads":2,"head_dim":16,
        "max_position_embeddings":128,"rms_norm_eps":1e-5,"rope_theta":10000.0,
        "rope_interleaved":true,"tie_word_embeddings":false})";

Artifact model_of(const Case& c, uint64_t seed) {
  sample::LlamaSize size{
      .vocabulary = 96, .hidden = 64, .head_dim = 16, .intermediate = 128, .tied = false};
  // Rows that share scales with others cannot move.
  const std::string scheme = c.scheme;
  size.interleaved =
      scheme.find("dyn8") == std::string::npos && scheme.find("/b") == std::string::npos;
  Artifact artifact = sample::quantized(
      sample::llama(size, seed), c.scheme,
      [](const Node& node) { return node.op == "linear" && node.name != "lm_head"; });
  artifact.config_json = kConfig;
  if (!size.interleaved) {
    artifact.config_json.replace(artifact.config_json.find("true"), 4, "false");
  }
  if (*c.other != '\0') {
    const Artifact other = sample::quantized(sample::llama(size, seed), c.other);
    for (auto& [name, packed] : artifact.packed) {
      if (name.find("down_proj") == std::string::npos) continue;
      packed = other.packed.at(name);
      artifact.layers.at(name) = other.layers.at(name);
    }
  }
  for (ProgramState& state : artifact.program.states)
    state.scheme = sample::take(parse_kv_scheme(*c.cache ? c.cache : "f32", 1, 1));
  if (*c.input != '\0') {
    for (auto& [name, layer] : artifact.layers) {
      ActivationScheme input{sample::take(parse_scheme(c.input)), true, 0, 0};
      input.dynamic = input.scheme.scales[0].block.kind == Block::Kind::row;
      if (!input.dynamic) input.scale = 0.01f;
      layer.input = input;
    }
  }
  return artifact;
}

class Quantized : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = sample::fresh_directory("quantized");
    std::filesystem::create_directories(directory_);
    for (size_t i = 0; i < std::size(kCases); ++i) {
      const Case& c = kCases[i];
      artifacts_.push_back(model_of(c, 80 + i));
      const Status status =
          sample::take(find_exporter(c.format))->write(artifacts_[i], folder(i), {});
      ASSERT_TRUE(status.ok()) << c.format << " " << c.scheme << ": " << status.message();
    }
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::filesystem::path folder(size_t i) const { return directory_ / std::to_string(i); }
  std::string name_of(size_t i) const {
    const Case& c = kCases[i];
    return cat(c.format, " ", c.scheme, *c.input ? " inputs " : "", c.input,
               *c.other ? " and " : "", c.other, *c.cache ? " cache " : "", c.cache);
  }

  std::filesystem::path directory_;
  std::vector<Artifact> artifacts_;
};

TEST_F(Quantized, OtherDecodersFindOurWeights) {
  std::string models;
  for (size_t i = 0; i < artifacts_.size(); ++i) models += " " + folder(i).string();
  const Ran ran = run_python("quantized_run.py", "weights" + models);
  if (ran.status == 77) {
    GTEST_SKIP() << "Python cannot import what it needs: " << ran.output;
  }
  ASSERT_EQ(ran.status, 0) << ran.output;
  for (size_t i = 0; i < artifacts_.size(); ++i) {
    SCOPED_TRACE(name_of(i));
    const auto theirs =
        sample::take(read_safetensors(folder(i) / "theirs.safetensors")).tensors;
    // As the directory holds them: rows in transformers' order.
    const Artifact ours = sample::take(load_model(folder(i), {}));
    ASSERT_EQ(theirs.size(), ours.packed.size());
    for (const auto& [name, packed] : ours.packed) {
      std::vector<float> values(static_cast<size_t>(packed.rows * packed.cols));
      ASSERT_TRUE(
          dequantize_rows(packed, 0, {values.data(), packed.rows, packed.cols}).ok());
      const std::vector<float> found = sample::take(to_float(theirs.at(name)));
      // A scale that is stored as its reciprocal or 127 times it is rounded once more.
      // NVFP4 is decompressed in bf16 besides.
      if (stores_another_scale(kCases[i])) {
        const bool bf16 = std::string_view(kCases[i].format) == "compressed-tensors";
        EXPECT_LT(relative_difference(found, values), bf16 ? 1.0 / 256 : 1e-6) << name;
      } else {
        EXPECT_EQ(found, values) << name;
      }
    }
  }
}

TEST_F(Quantized, TransformersGivesOurLogits) {
  std::vector<int32_t> tokens(48);
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>(i * 37 % 89 + 3);
  }
  std::ofstream(directory_ / "ids", std::ios::binary)
      .write(reinterpret_cast<const char*>(tokens.data()),
             static_cast<std::streamsize>(tokens.size() * sizeof(int32_t)));
  std::string models;
  for (size_t i = 0; i < artifacts_.size(); ++i) {
    if (kCases[i].loads) models += " " + folder(i).string();
  }
  const Ran ran =
      run_python("quantized_run.py", "logits " + (directory_ / "ids").string() + models);
  if (ran.status == 77) {
    GTEST_SKIP() << "Python cannot import what it needs: " << ran.output;
  }
  ASSERT_EQ(ran.status, 0) << ran.output;
  for (size_t i = 0; i < artifacts_.size(); ++i) {
    SCOPED_TRACE(name_of(i));
    const Artifact again = sample::take(load_model(folder(i), {}));
    const std::vector<float> ours = runtime_logits(again, tokens, tokens.size());
    // What was written means what the artifact means.
    EXPECT_LT(
        relative_difference(runtime_logits(artifacts_[i], tokens, tokens.size()), ours),
        kLogits);
    if (!kCases[i].loads) continue;
    const double difference =
        relative_difference(read_values<float>(folder(i) / "theirs.f32"), ours);
    EXPECT_LT(difference, *kCases[i].input ? kIntegerInputs : kLogits);
    std::printf("%s: logits differ by %.2g of their largest\n", name_of(i).c_str(),
                difference);
  }
}

}  // namespace
}  // namespace nibble::transformers
