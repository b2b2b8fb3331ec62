// Tokenizer files as the vocabulary of a GGUF and back, held against the vectors of real
// tokenizers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "export/formats/gguf_metadata.h"
#include "export/gguf/vocabulary.h"
#include "kernels/base/file.h"
#include "tests/export/sample_models.h"

namespace nibble {
namespace {

using sample::take;
using testing::HasSubstr;
namespace fs = std::filesystem;

const fs::path kData = fs::path(NIBBLE_SOURCE_DIR) / ".." / "shared" / "data";
using Files = std::map<std::string, Bytes>;

std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}
Bytes bytes_of(const std::string& text) {
  return Bytes::copy_of(text.data(), text.size());
}

std::vector<std::string> texts_of(const fs::path& path) {
  const std::string all = slurp(path), mark = "\n__ggml_vocab_test__\n";
  std::vector<std::string> texts;
  for (size_t at = 0, end; at < all.size(); at = end + mark.size()) {
    end = std::min(all.find(mark, at), all.size());
    texts.push_back(all.substr(at, end - at));
  }
  return texts;
}
std::vector<std::vector<int32_t>> ids_of(const fs::path& path) {
  std::vector<std::vector<int32_t>> rows;
  std::istringstream in(slurp(path));
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    rows.emplace_back();
    for (int32_t id; words >> id;) rows.back().push_back(id);
  }
  return rows;
}

// The files made of each vocabulary cut its own test texts as its authors say.
class GgufVectors : public testing::TestWithParam<const char*> {};
TEST_P(GgufVectors, FilesOfAVocabularyCutTextAsItDoes) {
  const fs::path path =
      kData / "tokenizers/gguf_vocab" / cat("ggml-vocab-", GetParam(), ".gguf");
  if (!fs::exists(path)) GTEST_SKIP() << "needs the shared data";
  const std::string file = slurp(path);
  const GgufMetadata metadata = take(read_gguf_metadata(file));
  const GgufVocabulary vocabulary = take(gguf_vocabulary(metadata));
  const Files files = take(tokenizer_files(vocabulary, "{{ messages }}"));
  const int64_t rows = static_cast<int64_t>(vocabulary.tokens.size());
  const auto tokenizer = take(make_tokenizer(files, rows));
  const auto direct = take(make_gguf_tokenizer(vocabulary));
  EXPECT_EQ(tokenizer->eos(), direct->eos());
  EXPECT_EQ(tokenizer->bos(), direct->bos());
  EXPECT_EQ(chat_template_of(files), "{{ messages }}");
  const auto texts = texts_of(path.string() + ".inp");
  const auto ids = ids_of(path.string() + ".out");
  ASSERT_GE(texts.size(), 40u);
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(take(tokenizer->encode_without_special(texts[i])), ids[i]) << texts[i];
    EXPECT_EQ(take(tokenizer->encode(texts[i])), take(direct->encode(texts[i])));
    EXPECT_EQ(tokenizer->decode(ids[i]), direct->decode(ids[i]));
  }
  if (vocabulary.model == "bert") return;
  // And back: the vocabulary of those files is the one they were made of.
  const GgufVocabulary again = take(vocabulary_of(files, "{}", rows));
  EXPECT_EQ(again.model, vocabulary.model);
  EXPECT_EQ(again.tokens, vocabulary.tokens);
  EXPECT_EQ(again.scores, vocabulary.scores);
  EXPECT_EQ(again.merges, vocabulary.merges);
  EXPECT_EQ(again.bos, vocabulary.bos);
  EXPECT_EQ(again.eos, vocabulary.eos);
  EXPECT_EQ(again.add_bos, vocabulary.add_bos);
  EXPECT_EQ(again.add_space_prefix, vocabulary.add_space_prefix);
}
INSTANTIATE_TEST_SUITE_P(Vocabularies, GgufVectors,
                         testing::Values("gpt-2", "llama-spm", "phi-3", "bert-bge"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

Files files_at(const std::map<std::string, fs::path>& paths) {
  Files files;
  for (const auto& [name, path] : paths) files[name] = take(map_file(path));
  return files;
}

TEST(GgufVocabularyOf, RealTokenizers) {
  if (!fs::exists(kData)) GTEST_SKIP() << "needs the shared data";
  const GgufVocabulary docs = take(vocabulary_of(
      files_at(
          {{"tokenizer.json", kData / "models/docs14m/tokenizer.json"},
           {"tokenizer_config.json", kData / "models/docs14m/tokenizer_config.json"}}),
      "{}", 4096));
  EXPECT_EQ(docs.model, "gpt2");
  EXPECT_EQ(docs.pre, "gpt-2");
  EXPECT_EQ(docs.bos, 0);
  EXPECT_EQ(docs.eos, 1);
  EXPECT_FALSE(docs.add_bos);
  EXPECT_EQ(docs.types[0], 3);
  const GgufVocabulary stories = take(vocabulary_of(
      files_at({{"tokenizer.bin", kData / "models/stories260K/tok512.bin"}}), "{}", 512));
  EXPECT_EQ(stories.model, "llama");
  EXPECT_EQ(stories.tokens[3 + 0x41], "<0x41>");
  EXPECT_TRUE(stories.add_bos);
  EXPECT_EQ(stories.eos, 2);
  EXPECT_EQ(stories.eot, 1);  // its texts are joined by BOS
  const GgufVocabulary gpt2 =
      take(vocabulary_of(files_at({{"vocab.json", kData / "tokenizers/gpt2_vocab.json"},
                                   {"merges.txt", kData / "tokenizers/gpt2_merges.txt"}}),
                         "{}", 50300));
  EXPECT_EQ(gpt2.tokens[50256], "<|endoftext|>");
  EXPECT_EQ(gpt2.tokens[50299], "[PAD50299]");
  EXPECT_EQ(gpt2.types[50299], 5);
  const fs::path phi3 =
      kData / "tokenizers/hf_tokenizer_json/phi3_spm_bpe_tokenizer.json";
  const GgufVocabulary merges =
      take(vocabulary_of(files_at({{"tokenizer.json", phi3}}), "{}", 32064));
  EXPECT_EQ(merges.model, "llama");
  EXPECT_EQ(merges.types[0], 2);
  EXPECT_EQ(merges.types[3], 6);
}

std::string bpe_json(const std::string& pre_tokenizer, const std::string& more = "") {
  return R"({"added_tokens": [], "normalizer": null, "pre_tokenizer": )" + pre_tokenizer +
         R"(, "post_processor": null, "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE",)" +
         more + R"( "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "merges": ["a b"]}})";
}

TEST(GgufVocabularyOf, SaysWhatItCannotSay) {
  const auto message = [](const std::string& json) {
    return vocabulary_of({{"tokenizer.json", bytes_of(json)}}, "{}", 8)
        .status()
        .message();
  };
  EXPECT_THAT(
      message(bpe_json(R"({"type": "Whitespace"})")),
      HasSubstr("GGUF says by name how text is cut, and those that nibble knows (gpt-2, "
                "llama-bpe, qwen2, smollm) do otherwise than this tokenizer.json: "
                "Whitespace; "));
  EXPECT_THAT(message(bpe_json(R"({"type": "ByteLevel", "add_prefix_space": true})")),
              HasSubstr("ByteLevel add_prefix_space use_regex"));
  EXPECT_EQ(
      vocabulary_of({{"vocab.txt", bytes_of("[UNK]\na\n")}}, "{}", 8).status().message(),
      "[gguf] tokenizer: a decoder's GGUF needs BPE; found BERT's vocab.txt");
}

TEST(TokenizerFiles, DamagedVocabularies) {
  GgufVocabulary v;
  v.model = "gpt2";
  v.tokens = {"a", "\xff"};
  v.types = {1, 1};
  EXPECT_EQ(
      tokenizer_files(v, "").status().message(),
      "[gguf] tokenizer.ggml.tokens: token 1: UTF-8 of a byte or more was required; "
      "found other bytes or none; the file is damaged");
  v.pre = "unheard-of";
  EXPECT_THAT(tokenizer_files(v, "").status().message(), HasSubstr("found unheard-of"));
}

}  // namespace
}  // namespace nibble
