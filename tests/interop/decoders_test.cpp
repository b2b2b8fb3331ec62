// Every decoder architecture against transformers, which wrote the checkpoints and the
// logits; and its ONNX exports in ONNX Runtime against our own runtime.
#include "export/exporter.h"
#include "kernels/program/edits/rotate.h"
#include "tests/interop/transformers.h"

namespace nibble::transformers {
namespace {

// f32 sums in another order; 3e-6 is what was measured.
constexpr double kLogits = 1e-4;

class Decoders : public Checkpoints {};

TEST_F(Decoders, GiveTransformersLogitsInPrefillAndDecode) {
  for (const std::string& name : cases_) {
    SCOPED_TRACE(name);
    const Artifact artifact = load(name);
    const std::vector<float> theirs = logits(name);
    for (const size_t first : {size_t{48}, size_t{20}, size_t{1}}) {
      const double difference =
          relative_difference(runtime_logits(artifact, ids(name), first), theirs);
      EXPECT_LT(difference, kLogits) << "prefill of " << first;
      std::printf("%s, prefill of %d: logits differ by %.2g of their largest\n",
                  name.c_str(), static_cast<int>(first), difference);
    }
  }
  // The same weights with and without what the case is about: it must show.
  for (const auto& [with, without] :
       {std::pair{"llama3", "llama"}, std::pair{"linear", "llama"},
        std::pair{"mistral", "mistral_null"}, std::pair{"qwen2_window", "qwen2"},
        std::pair{"moe", "moe_some"}}) {
    EXPECT_GT(relative_difference(logits(with), logits(without)), 0.01) << with;
  }
  EXPECT_EQ(logits("llama3"), logits("llama3_old"));
  EXPECT_EQ(logits("moe"), logits("moe_fused"));
  EXPECT_EQ(load("moe").program, load("moe_fused").program);
}

// Float, 8 bits a row and 4 bits a group; where embedding and lm_head are one tensor they
// are quantized too. The prompt, then four tokens through past and present.
TEST_F(Decoders, RunTheSameInOnnxRuntime) {
  const Ran check = run_python("onnx_run.py", "check /nonexistent");
  if (check.status == 77) {
    GTEST_SKIP() << "Python cannot import what it needs: " << check.output;
  }
  std::vector<std::pair<std::string, Artifact>> exported;
  std::ofstream list(directory_ / "list");
  for (const std::string& name : cases_) {
    // The same programs as without the ending.
    if (name.ends_with("_old") || name.ends_with("_fused")) continue;
    std::string prompt;
    for (const int32_t id : ids(name)) prompt += cat(prompt.empty() ? "" : ",", id);
    for (const char* scheme : {"f32", "int8n/r@f32", "int4/g16@f16", "rotated"}) {
      Artifact floats = load(name);
      if (std::string(scheme) == "rotated") {
        if (name != "llama" && name != "qwen3") continue;
        scheme = "f32";
        RotatedModel turned = sample::take(
            rotate(floats.program, floats.tensors,
                   {.residual = true, .heads = true, .down = true, .cache = true}));
        floats.program = std::move(turned.program);
        floats.tensors = std::move(turned.tensors);
      }
      const Artifact artifact =
          std::string(scheme) == "f32" ? floats : sample::quantized(floats, scheme);
      const auto folder = directory_ / cat("onnx_", exported.size());
      const Status status =
          sample::take(find_exporter("onnx"))->write(artifact, folder, {});
      ASSERT_TRUE(status.ok()) << name << " " << scheme << ": " << status.message();
      list << folder.string() << " " << prompt << " 4 " << (folder / "logits").string()
           << "\n";
      exported.emplace_back(cat(name, " ", scheme), artifact);
    }
  }
  list.close();
  const Ran ran = run_python("onnx_run.py", "many " + (directory_ / "list").string());
  ASSERT_EQ(ran.status, 0) << ran.output;
  std::istringstream lines(ran.output);
  const std::vector<int32_t> prompt = ids("llama");  // every case has the same
  for (size_t i = 0; i < exported.size(); ++i) {
    const auto& [name, artifact] = exported[i];
    SCOPED_TRACE(name);
    std::string line;
    ASSERT_TRUE(std::getline(lines, line));
    std::istringstream chosen(line);
    std::vector<int32_t> all = prompt;
    for (std::string id; std::getline(chosen, id, ',');) all.push_back(std::stoi(id));
    ASSERT_EQ(all.size(), prompt.size() + 4);
    const std::vector<float> theirs =
        read_values<float>(directory_ / cat("onnx_", i) / "logits");
    EXPECT_LT(relative_difference(theirs, runtime_logits(artifact, all, prompt.size())),
              kLogits);
  }
}

// Dequantized or float, in any dtype, in one file or many: transformers loads what
// `nibble export --to hf` writes and gives our logits.
TEST_F(Decoders, GoBackToTransformers) {
  std::map<std::string, Artifact> written;  // by folder
  const auto write = [&](const std::string& folder, const Artifact& artifact,
                         const char* dtype, int64_t shard_bytes) {
    ExportOptions options;
    options.dtype = dtype;
    options.shard_bytes = shard_bytes;
    const Status status =
        sample::take(find_exporter("hf"))->write(artifact, directory_ / folder, options);
    ASSERT_TRUE(status.ok()) << folder << ": " << status.message();
    written[folder] = artifact;
  };
  for (const std::string& name : cases_) {
    const bool small = name.starts_with("qwen");
    write("hf_" + name, load(name), "f32", small ? 20000 : kShardBytes);
    write("hf4_" + name, sample::quantized(load(name), "int4/g16@f16"), "f32",
          small ? kShardBytes : 1);
  }
  write("hf_bf16", load("llama3"), "bf16", kShardBytes);
  write("hf_f16", sample::quantized(load("qwen3"), "int8n/r@f32"), "f16", 9999);
  sample::LlamaSize size;
  size.interleaved = true;
  size.tied = false;
  Artifact interleaved = sample::llama(size, 3);
  interleaved.config_json =
      R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":96,
          "hidden_size":48,"intermediate_size":80,"num_hidden_layers":2,
          "num_attention_heads":4,"num_key_value_heads":2,"head_dim":12,
          "max_position_embeddings":128,"rms_norm_eps":1e-5,"rope_theta":10000.0,
          "rope_interleaved":true,"tie_word_embeddings":false})";
  write("hf_interleaved", interleaved, "f32", kShardBytes);

  std::string models;
  for (const auto& [folder, artifact] : written) {
    models += " " + (directory_ / folder).string();
  }
  const Ran ran =
      run_python("transformers_run.py",
                 cat("logits ", (folder("llama") / "input_ids.i32").string(), models));
  ASSERT_EQ(ran.status, 0) << ran.output;
  const std::vector<int32_t> tokens = ids("llama");
  for (const auto& [folder, artifact] : written) {
    SCOPED_TRACE(folder);
    const std::vector<float> theirs =
        read_values<float>(directory_ / folder / "theirs.f32");
    // What was written, read by us: the same bits as the artifact's where it is f32.
    const std::vector<float> ours = runtime_logits(
        sample::take(load_model(directory_ / folder, {})), tokens, tokens.size());
    EXPECT_LT(relative_difference(theirs, ours), kLogits);
    const bool exact = folder != "hf_bf16" && folder != "hf_f16";
    EXPECT_LT(relative_difference(runtime_logits(artifact, tokens, tokens.size()), ours),
              exact ? kLogits : 0.05);
    const bool sharded =
        std::filesystem::exists(directory_ / folder / "model.safetensors.index.json");
    EXPECT_EQ(sharded,
              !std::filesystem::exists(directory_ / folder / "model.safetensors"));
  }
  EXPECT_TRUE(
      std::filesystem::exists(directory_ / "hf_qwen3/model.safetensors.index.json"));
  EXPECT_TRUE(std::filesystem::exists(directory_ / "hf_llama3/model.safetensors"));
}

}  // namespace
}  // namespace nibble::transformers
