// Every input of the fuzzers' corpora, and of what they found, through the readers again.
//
// NIBBLE_FUZZ_SEEDS=FOLDER writes the inputs that fuzzing begins with: small files of the
// formats' own writers (tests/fuzz/corpus has them).
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "recipes/data/bpe_trainer.h"
#include "tests/export/hf_random.h"
#include "tests/fuzz/readers.h"
#include "tests/kernels/small_sentence_piece.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

bool reads(const fuzz::Reader& reader, const std::string& bytes) {
  return reader.read(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

class FuzzCorpus : public ::testing::TestWithParam<fuzz::Reader> {};

TEST_P(FuzzCorpus, IsReadOrRefused) {
  int count = 0, whole = 0;
  for (const auto& entry : fs::directory_iterator(
           fs::path(NIBBLE_SOURCE_DIR) / "tests/fuzz/corpus" / GetParam().name)) {
    SCOPED_TRACE(entry.path().string());
    whole += reads(GetParam(), contents(entry.path()));
    ++count;
  }
  EXPECT_GE(count, 3);
  EXPECT_GE(whole, 3);  // what is broken anyway would not lead a fuzzer far
}

INSTANTIATE_TEST_SUITE_P(Readers, FuzzCorpus, ::testing::ValuesIn(fuzz::readers()),
                         [](const auto& info) { return std::string(info.param.name); });

// --- the seeds

using Seeds = std::vector<std::pair<std::string, std::string>>;  // name, bytes

std::string exported(const char* format, const sample::RandomModel& model) {
  Artifact artifact = sample::random_model(3, model);
  artifact.tokenizer.clear();
  for (const auto& [name, tensor] : artifact.tensors) {
    artifact.ledger.entries.push_back({.tensor = name,
                                       .scheme = "f32",
                                       .method = "float",
                                       .reason = "is",
                                       .kernel = "",
                                       .note = ""});
  }
  for (const auto& [name, packed] : artifact.packed) {
    artifact.ledger.entries.push_back({.tensor = name,
                                       .scheme = to_string(packed.scheme),
                                       .method = "rtn",
                                       .reason = "",
                                       .kernel = "",
                                       .note = ""});
  }
  std::sort(
      artifact.ledger.entries.begin(), artifact.ledger.entries.end(),
      [](const LedgerEntry& a, const LedgerEntry& b) { return a.tensor < b.tensor; });
  const Exporter* exporter = sample::take(find_exporter(format));
  const fs::path directory = sample::fresh_directory(format);
  const Status written = exporter->write(artifact, directory, {});
  EXPECT_TRUE(written.ok()) << written.message();
  std::vector<std::string> parts;
  if (std::string_view(format) == "nibble")
    parts.push_back(contents(directory / "manifest.json"));
  parts.push_back(contents(directory / "config.json"));
  parts.push_back(contents(directory / "model.safetensors"));
  fs::remove_all(directory);
  return fuzz::joined_parts(parts);
}

Seeds seeds_of(const std::string& reader) {
  const auto model = [](const char* scheme, int64_t multiple, const char* input = "",
                        bool permuted = false) {
    return sample::RandomModel{.schemes = {scheme},
                               .multiple = multiple,
                               .input = input,
                               .permuted = permuted,
                               .most = 32};
  };
  if (reader == "compressed_tensors") {
    return {
        {"int4", exported("compressed-tensors", model("int4/g16@f16", 16))},
        {"uint3", exported("compressed-tensors", model("uint3/g8@f16+z/g8@uint3", 16))},
        {"w8a8", exported("compressed-tensors", model("int8n/r@f32", 1, "int8n/r@f32"))},
        {"fp8", exported("compressed-tensors", model("e4m3/b16x16@f32", 16))},
        {"mxfp4", exported("compressed-tensors", model("e2m1/g32@e8m0", 32))},
        {"nvfp4", exported("compressed-tensors", model("e2m1/g16@e4m3/t@f32", 16))}};
  }
  if (reader == "gptq") {
    return {{"int4", exported("gptq", model("int4/g32@f16", 32))},
            {"uint3", exported("gptq", model("uint3/g32@f16+z/g32@uint3", 32))},
            {"ordered", exported("gptq", model("int8/g32@f16", 32, "", true))}};
  }
  if (reader == "awq") {
    return {{"uint4", exported("awq", model("uint4/g16@f16+z/g16@uint4", 16))},
            {"int4", exported("awq", model("int4/g32@f16", 32))},
            {"row", exported("awq", model("int4n/r@f16", 8))}};
  }
  if (reader == "bitsandbytes") {
    return {{"nf4", exported("bitsandbytes", model("nf4/f64@f32", 1))},
            {"fp4", exported("bitsandbytes", model("fp4/f32@f32", 1))},
            {"nested", exported("bitsandbytes", model("nf4/f64@dyn8+o/f16384@f32", 1))},
            {"int8", exported("bitsandbytes", model("int8n/r@f32", 1))}};
  }
  if (reader == "fp8") {
    return {{"grid", exported("fp8", model("e4m3/b16x16@f32", 1))},
            {"wide", exported("fp8", model("e4m3/b8x32@f32", 1))},
            {"bf16", exported("fp8", model("e4m3/b16x16@bf16", 16))}};
  }
  if (reader == "modelopt") {
    return {{"fp8", exported("modelopt", model("e4m3/t@f32", 1, "e4m3/t@f32"))},
            {"square", exported("modelopt", model("e4m3/t@f32", 16, "e4m3/t@f32"))},
            {"nvfp4", exported("modelopt", model("e2m1/g16@e4m3/t@f32", 16))}};
  }
  if (reader == "nibble") {
    return {{"int4", exported("nibble", model("int4/g16@f16", 1))},
            {"q4_k", exported("nibble",
                              model("uint4/g32@uint6/g256@f16+m/g32@uint6/g256@f16", 1))},
            {"inputs", exported("nibble", model("int8n/r@f32", 1, "int8n/r@f32", true))}};
  }
  if (reader == "onnx") {
    const auto onnx = [](const Artifact& artifact) {
      const fs::path directory = sample::fresh_directory("onnx");
      const Status written =
          sample::take(find_exporter("onnx"))->write(artifact, directory, {});
      EXPECT_TRUE(written.ok()) << written.message();
      const std::string bytes = contents(directory / "model.onnx");
      fs::remove_all(directory);
      return bytes;
    };
    const auto without_description = [](const std::string& bytes) {
      onnx::ModelProto model;
      EXPECT_TRUE(model.ParseFromString(bytes));
      model.clear_metadata_props();
      return model.SerializeAsString();
    };
    const std::string net = onnx(sample::residual_net(3));
    const sample::LlamaSize tiny{.vocabulary = 16,
                                 .hidden = 16,
                                 .heads = 2,
                                 .kv_heads = 1,
                                 .head_dim = 8,
                                 .intermediate = 32,
                                 .layers = 1,
                                 .context = 8};
    return {{"net", net},
            {"foreign_net", without_description(net)},
            {"decoder", onnx(sample::quantized(sample::llama(tiny, 3), "int4/g16@f32"))}};
  }
  if (reader == "safetensors") {
    const std::string gptq = exported("gptq", model("int4/g32@f16", 32));
    const std::string file =
        fuzz::parts_of(reinterpret_cast<const uint8_t*>(gptq.data()), gptq.size(), 2)[1];
    const std::string small =
        std::string("\x40\0\0\0\0\0\0\0", 8) +
        R"({"test":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]}}     )" +
        "12345678";
    return {{"gptq", fuzz::joined_parts({"", file})},
            {"small", fuzz::joined_parts({"", small})},
            {"index", fuzz::joined_parts({R"({"metadata":{"total_size":8},"weight_map":)"
                                          R"({"test":"shard.safetensors"}})",
                                          small})}};
  }
  if (reader == "config") {
    const std::string sizes =
        R"("vocab_size":64,"hidden_size":16,"intermediate_size":24,"num_hidden_layers":2,)"
        R"("num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":32,)";
    return {{"llama", "{" + sizes +
                          R"("model_type":"llama","rms_norm_eps":1e-5,)"
                          R"("tie_word_embeddings":true,"rope_parameters":)"
                          R"({"rope_type":"llama3","rope_theta":1e4,"factor":8,)"
                          R"("low_freq_factor":1,"high_freq_factor":4,)"
                          R"("original_max_position_embeddings":16}})"},
            {"qwen3_moe", "{" + sizes +
                              R"("model_type":"qwen3_moe","num_experts":4,)"
                              R"("num_experts_per_tok":2,"head_dim":8,)"
                              R"("moe_intermediate_size":8,"norm_topk_prob":true,)"
                              R"("decoder_sparse_step":1,"mlp_only_layers":[]})"},
            {"mistral", "{" + sizes +
                            R"("model_type":"mistral","sliding_window":8,)"
                            R"("rope_theta":1e6,"hidden_act":"silu"})"},
            {"bert", "{" + sizes +
                         R"("model_type":"bert","type_vocab_size":2,)"
                         R"("layer_norm_eps":1e-12,"hidden_act":"gelu"})"}};
  }
  const auto tokens = [](char kind, const std::string& file) { return kind + file; };
  const auto bpe = train_bpe({"Once upon a time there was a cat.", "The cat sat."}, 262);
  EXPECT_TRUE(bpe.ok()) << bpe.status().message();
  return {
      {"bpe", tokens('\0', *bpe)},
      {"pieces", tokens('\1', small_model(2))},
      {"unigram", tokens('\1', small_model(1, true))},
      {"vocab", tokens('\3', "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nonce\nup\n##on\na\n")},
      {"gpt2", tokens('\4', fuzz::joined_parts({R"({"a":0,"b":1,"c":2,"ab":3,"<|e|>":4})",
                                                "#version: 0.2\na b\n"}))}};
}

class FuzzSeeds : public ::testing::TestWithParam<fuzz::Reader> {};

TEST_P(FuzzSeeds, AreReadWhole) {
  const std::string reader = GetParam().name;
  if (reader == "gguf") GTEST_SKIP() << "its corpus is made by hand";
  const char* folder = std::getenv("NIBBLE_FUZZ_SEEDS");
  for (const auto& [name, bytes] : seeds_of(reader)) {
    EXPECT_TRUE(reads(GetParam(), bytes)) << reader << " " << name;
    if (folder == nullptr) continue;
    fs::create_directories(fs::path(folder) / reader);
    std::ofstream(fs::path(folder) / reader / name, std::ios::binary) << bytes;
  }
}

INSTANTIATE_TEST_SUITE_P(Readers, FuzzSeeds, ::testing::ValuesIn(fuzz::readers()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace nibble
