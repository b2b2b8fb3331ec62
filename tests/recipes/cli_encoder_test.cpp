// A small BERT from files to embeddings: what is loaded, what is refused by name, how
// sentences are cut, and what the command says of an encoder.
#include <gmock/gmock.h>

#include <cmath>

#include "command.h"
#include "kernels/program/shape.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "recipes/data/sentences.h"
#include "recipes/eval/embeddings.h"
#include "recipes/models/architecture.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;
using Json = nlohmann::json;

Json small_config() {
  return {{"architectures", {"BertModel"}}, {"model_type", "bert"},
          {"vocab_size", 40},               {"hidden_size", 24},
          {"num_hidden_layers", 2},         {"num_attention_heads", 3},
          {"intermediate_size", 36},        {"max_position_embeddings", 20},
          {"layer_norm_eps", 1e-6}};
}

// Random weights for the program of a config, under a prefix.
std::map<std::string, Tensor> weights(const Json& config, const std::string& prefix) {
  std::map<std::string, Tensor> tensors;
  SplitMix64 random(5);
  const Program program = *bert_program(config.dump());
  const Shapes shapes = *parameter_shapes(program);
  for (const auto& [name, shape] : shapes) {
    int64_t count = 1;
    for (const int64_t dim : shape) count *= dim;
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i) {
      const bool norm = name.find("LayerNorm.weight") != std::string::npos;
      values.push_back(static_cast<float>(norm + 0.6 * (random.uniform() - 0.5)));
    }
    tensors[prefix + name] = make_tensor(shape, values);
  }
  return tensors;
}

class EncoderFiles : public ::testing::Test {
 protected:
  void write(const Json& config, const std::map<std::string, Tensor>& tensors) {
    fs::create_directories(model());
    std::ofstream(model() / "config.json") << config.dump();
    ASSERT_TRUE(write_safetensors(model() / "model.safetensors", tensors, {}).ok());
  }
  void write(const std::string& name, const Json& json) {
    fs::create_directories((model() / name).parent_path());
    std::ofstream(model() / name) << json.dump();
  }
  void write_sentence_transformer(const Json& pooling) {
    const std::string at = "sentence_transformers.models.";
    write("modules.json", {{{"type", at + "Transformer"}, {"path", ""}},
                           {{"type", at + "Pooling"}, {"path", "1_Pooling"}},
                           {{"type", at + "Normalize"}, {"path", "2_Normalize"}}});
    write("1_Pooling/config.json", pooling);
    write("sentence_bert_config.json", {{"max_seq_length", 16}});
  }
  void write_ids(const std::string& name, const std::vector<std::vector<int32_t>>& ids,
                 int64_t length) {
    std::vector<int32_t> all;
    for (const auto& row : ids) {
      all.insert(all.end(), row.begin(), row.end());
      all.resize(all.size() + static_cast<size_t>(length) - row.size(), -1);
    }
    Tensor tensor;
    tensor.dtype = DType::i32;
    tensor.shape = {static_cast<int64_t>(ids.size()), length};
    tensor.bytes = Bytes::copy_of(all.data(), all.size() * 4);
    ASSERT_TRUE(write_safetensors(at(name), {{"input_ids", tensor}}, {}).ok());
  }
  Outcome run(const std::vector<std::string>& arguments) {
    return Command(arguments, scratch_.path()).wait();
  }
  fs::path model() const { return scratch_.path() / "model"; }
  std::string at(const std::string& name) const { return (scratch_.path() / name).string(); }
  std::string refusal() { return load_model(model(), {}).status().message(); }

  TemporaryDirectory scratch_;
};

Executor executor_of(Artifact artifact) {
  Result<Executor> executor =
      Executor::create(std::make_shared<const Artifact>(std::move(artifact)), {});
  EXPECT_TRUE(executor.ok()) << executor.status().message();
  return std::move(executor).value();
}

TEST_F(EncoderFiles, HeadsAreIgnoredByNameAndThePrefixStays) {
  std::map<std::string, Tensor> tensors = weights(small_config(), "bert.");
  tensors["bert.pooler.dense.bias"] = make_tensor({24}, std::vector<float>(24, 1.0f));
  tensors["cls.predictions.bias"] = make_tensor({40}, std::vector<float>(40, 1.0f));
  Json config = small_config();
  config["architectures"] = {"BertForMaskedLM"};
  write(config, tensors);
  const Result<Artifact> loaded = load_model(model(), {});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_NE(loaded->program.find("bert.encoder.layer.1.attention.self.query"), nullptr);
  EXPECT_EQ(loaded->program.find("bert.encoder.layer.0.attention.self.attention")
                ->integer("causal", 1),
            0);
  ASSERT_EQ(loaded->ledger.entries.size(), 2u);
  EXPECT_EQ(loaded->ledger.entries[0].tensor, "bert.pooler.dense.bias");
  EXPECT_EQ(loaded->ledger.entries[1].reason,
            "no node of BertModel reads it; 40 values left out");
  EXPECT_TRUE(loaded->program.is_encoder());

  tensors["classifier.weight"] = make_tensor({24}, std::vector<float>(24, 1.0f));
  write(config, tensors);
  EXPECT_EQ(refusal(),
            "[models] classifier.weight: BertModel has no such parameter; found it in the "
            "checkpoint, [24]; do config.json and the weights belong together?");
}

TEST_F(EncoderFiles, WhatBertCannotDoIsRefusedByName) {
  const auto message = [](const char* field, const Json& value) {
    Json config = small_config();
    config[field] = value;
    return bert_program(config.dump()).status().message();
  };
  EXPECT_EQ(message("hidden_act", "swish"),
            "[models] config.json: hidden_act: nibble supports gelu, gelu_new, "
            "gelu_pytorch_tanh and relu; found swish");
  EXPECT_EQ(message("position_embedding_type", "relative_key"),
            "[models] config.json: position_embedding_type: nibble supports absolute; found "
            "relative_key");
  EXPECT_EQ(message("is_decoder", true),
            "[models] config.json: is_decoder: nibble supports false: an encoder; found "
            "true");
  EXPECT_EQ(message("num_attention_heads", 5),
            "[models] config.json: num_attention_heads must divide hidden_size; found 5 and "
            "24");
}

TEST_F(EncoderFiles, SentenceTransformersAddPoolingAndNormalization) {
  write(small_config(), weights(small_config(), ""));
  write_sentence_transformer({{"pooling_mode_cls_token", false},
                              {"pooling_mode_mean_tokens", true}});
  Result<Artifact> loaded = load_model(model(), {});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->program.context_length, 16);
  EXPECT_EQ(loaded->program.outputs[0].name, "sentence_embedding");
  EXPECT_EQ(loaded->program.find("pooling")->op, "mean_pool");
  EXPECT_EQ(loaded->program.nodes.back().op, "l2_normalize");

  write_sentence_transformer({{"pooling_mode", "cls"}});  // as version 6 writes it
  EXPECT_EQ(load_model(model(), {})->program.find("pooling")->op, "first_token");
  write_sentence_transformer({{"pooling_mode_max_tokens", true}});
  EXPECT_THAT(refusal(), HasSubstr("1_Pooling/config.json: nibble supports pooling by mean "
                                   "or cls, one of them; found max"));
  write("modules.json", {{{"type", "x.Transformer"}, {"path", ""}},
                         {{"type", "x.Dense"}, {"path", "2_Dense"}}});
  EXPECT_THAT(refusal(), HasSubstr("modules.json: nibble supports the modules Transformer, "
                                   "Pooling and Normalize, in this order; found x.Dense"));
  write("modules.json", Json::array());
  EXPECT_THAT(refusal(), HasSubstr("found no Pooling"));
}

// A batch is its sentences, whatever lies beside them; token types move the result.
TEST_F(EncoderFiles, ABatchIsItsSentences) {
  write(small_config(), weights(small_config(), ""));
  write_sentence_transformer({{"pooling_mode", "mean"}});
  Executor model_of_files = executor_of(*load_model(model(), {}));
  const std::vector<std::vector<int32_t>> sentences = {{1, 2, 3}, {7}, {9, 8, 7, 6, 5, 4}};
  const Result<std::vector<float>> alone = embed_sentences(model_of_files, sentences, {});
  ASSERT_TRUE(alone.ok()) << alone.status().message();
  const std::vector<int32_t> tokens = {1, 2, 3, 7, 9, 8, 7, 6, 5, 4};
  const std::vector<int64_t> lengths = {3, 1, 6};
  std::vector<float> batch(3 * 24);
  const MatrixView<float> output(batch.data(), 3, 24);
  ASSERT_TRUE(model_of_files.encode(tokens, lengths, {}, output).ok());
  for (size_t i = 0; i < batch.size(); ++i) EXPECT_NEAR(batch[i], (*alone)[i], 1e-6);
  double length = 0;
  for (size_t d = 0; d < 24; ++d) length += static_cast<double>(batch[d]) * batch[d];
  EXPECT_NEAR(length, 1, 1e-6);

  // A tap sees every node of the graph, and changes no byte.
  int64_t seen = 0;
  model_of_files.set_tap([&](const TapValue&) { ++seen; });
  std::vector<float> tapped(batch.size());
  const MatrixView<float> again(tapped.data(), 3, 24);
  ASSERT_TRUE(model_of_files.encode(tokens, lengths, {}, again).ok());
  model_of_files.set_tap({});
  EXPECT_EQ(tapped, batch);
  EXPECT_EQ(seen, static_cast<int64_t>(model_of_files.artifact().program.nodes.size()));

  const std::vector<int32_t> types = {0, 0, 1, 0, 0, 0, 0, 0, 0, 0};
  ASSERT_TRUE(model_of_files.encode(tokens, lengths, types, again).ok());
  EXPECT_GT(std::fabs(tapped[0] - batch[0]), 1e-5);
  for (size_t i = 24; i < batch.size(); ++i) EXPECT_EQ(tapped[i], batch[i]);
}

TEST_F(EncoderFiles, CallsThatMakeNoSenseAreRefused) {
  write(small_config(), weights(small_config(), ""));
  Executor encoder = executor_of(*load_model(model(), {}));
  const auto message = [&](std::vector<int32_t> tokens, std::vector<int64_t> lengths,
                           std::vector<int32_t> types = {}) {
    std::vector<float> out(24 * 32);
    const auto rows = static_cast<int64_t>(tokens.size());
    return encoder.encode(tokens, lengths, types, MatrixView<float>(out.data(), rows, 24))
        .message();
  };
  EXPECT_EQ(message({1, 2}, {2}), "");
  EXPECT_EQ(message({1, 2}, {3}),
            "[runtime] tokens: as many as the lengths say, and at least one, were required; "
            "found 2 for lengths of 3");
  EXPECT_EQ(message({1, 40}, {2}),
            "[runtime] tokens: ids in [0, 40) were required; found 40 at position 1; does "
            "the tokenizer belong to this model?");
  EXPECT_EQ(message({1, 2}, {2}, {0, 2}),
            "[runtime] token types: types in [0, 2) were required; found 2 at position 1");
  EXPECT_EQ(message(std::vector<int32_t>(21, 1), {21}),
            "[runtime] tokens: sequences of 1 to 20 tokens (the model's context) were "
            "required; sequence 0 has 21; cut it");
  EXPECT_EQ(message({1, 2}, {2, 0}),
            "[runtime] tokens: sequences of 1 to 20 tokens (the model's context) were "
            "required; sequence 1 has 0; cut it");
  EXPECT_EQ(encoder.make_cache(4).status().message(),
            "[runtime] BertModel: a language model was required; this one is an encoder, "
            "which makes no logits; use encode");
}

TEST_F(EncoderFiles, TheCommandEmbedsComparesAndRefuses) {
  write(small_config(), weights(small_config(), ""));
  write_sentence_transformer({{"pooling_mode", "mean"}});
  write_ids("ids.safetensors", {{1, 2, 3, 4}, {5, 6}, {7, 8, 9}}, 4);
  const Outcome embedded = run({"embed", model().string(), "--text", at("ids.safetensors"),
                                "--output", at("out.safetensors"), "--json"});
  ASSERT_EQ(embedded.code, 0) << embedded.error;
  EXPECT_EQ(parse_json_or_throw(embedded.out)["sentences"], 3);
  const Result<SafetensorsFile> file = read_safetensors(at("out.safetensors"));
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->tensors.at("embeddings").shape, (std::vector<int64_t>{3, 24}));
  EXPECT_EQ(run({"embed", model().string(), "--text", at("ids.safetensors"), "--output",
                 at("out.safetensors")})
                .code,
            9);

  const Outcome compared =
      run({"evaluate", model().string(), "--text", at("ids.safetensors"), "--reference",
           model().string(), "--json"});
  ASSERT_EQ(compared.code, 0) << compared.error;
  EXPECT_NEAR(parse_json_or_throw(compared.out)["cosine"].get<double>(), 1, 1e-12);
  EXPECT_NEAR(parse_json_or_throw(compared.out)["lowest_cosine"].get<double>(), 1, 1e-12);
  const Outcome alone =
      run({"evaluate", model().string(), "--text", at("ids.safetensors")});
  EXPECT_EQ(alone.code, 2);
  EXPECT_THAT(alone.error, HasSubstr("give --reference, the float model"));

  const Outcome paged = run({"evaluate", model().string(), "--text", at("ids.safetensors"),
                             "--reference", model().string(), "--report", at("x.html")});
  EXPECT_EQ(paged.code, 2);
  EXPECT_THAT(paged.error, HasSubstr("found an encoder; leave it out"));

  const Outcome generated = run({"generate", model().string(), "--prompt", "x"});
  EXPECT_EQ(generated.code, 2);
  EXPECT_THAT(generated.error, HasSubstr("found BertModel, an encoder, which continues no "
                                         "text; use embed"));
  const Outcome timed = run({"bench", model().string(), "--text", at("ids.safetensors"),
                             "--repeats", "1", "--batch", "2", "--json"});
  ASSERT_EQ(timed.code, 0) << timed.error;
  EXPECT_GT(parse_json_or_throw(timed.out)["sentences_per_second"].get<double>(), 0);
}

// The cosine of known vectors: one sentence equal, one at 60 degrees.
TEST_F(EncoderFiles, EvaluationNeedsTwoEncodersOfOneWidth) {
  write(small_config(), weights(small_config(), ""));
  Executor encoder = executor_of(*load_model(model(), {}));
  Json other = small_config();
  other["hidden_size"] = 30;
  write(other, weights(other, ""));
  Executor wider = executor_of(*load_model(model(), {}));
  EXPECT_EQ(evaluate_embeddings(encoder, wider, {{1, 2}}, {}).status().message(),
            "[embed] reference: embeddings of this model's width of 24 were required; found "
            "30; give the model that this one was made from");
  EXPECT_EQ(evaluate_embeddings(encoder, encoder, {}, {}).status().message(),
            "[embed] sentences: at least one was required; found none; give a text");
}

TEST(Sentences, EndAtPunctuationThatWhiteSpaceFollows) {
  EXPECT_THAT(split_sentences("One. Two?! \"Three.\" Four 3.14 five"),
              ElementsAre("One.", "Two?!", "\"Three.\"", "Four 3.14 five"));
  EXPECT_THAT(split_sentences("  (He left.) She...  stayed"),
              ElementsAre("(He left.)", "She...", "stayed"));
  EXPECT_THAT(split_sentences(""), ElementsAre());
  EXPECT_THAT(split_sentences("..."), ElementsAre("..."));
}

TEST(Sentences, OfAFileInOrder) {
  TemporaryDirectory scratch;
  const fs::path path = scratch.path() / "text.txt";
  std::ofstream(path) << "First one. No.\n\nThe third line here\n";
  TextOptions options;
  EXPECT_THAT(*read_sentences(path, options),
              ElementsAre("First one.", "No.", "The third line here"));
  options.min_chars = 5;
  EXPECT_THAT(*read_sentences(path, options), ElementsAre("First one.", "The third line here"));
  options.limit = 1;
  EXPECT_THAT(*read_sentences(path, options), ElementsAre("First one."));
  options.per_line = true;
  EXPECT_THAT(*read_sentences(path, options), ElementsAre("First one. No."));
  options.min_chars = 50;
  EXPECT_EQ(read_sentences(path, options).status().code(), StatusCode::invalid_argument);
}

}  // namespace
}  // namespace nibble
