// Tokenizers in plain files (SentencePiece .model, GPT-2's pair, BERT's vocab.txt), the
// regular expressions of tokenizer.json, the character map, and decoding token by token.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/base/json.h"
#include "kernels/base/splitmix64.h"
#include "kernels/tokenizer/byte_alphabet.h"
#include "kernels/tokenizer/charsmap.h"
#include "kernels/tokenizer/pattern.h"
#include "kernels/tokenizer/regex.h"
#include "kernels/tokenizer/stream_decoder.h"
#include "kernels/tokenizer/tokenizer.h"
#include "tests/kernels/small_sentence_piece.h"

namespace nibble {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using Ids = std::vector<int32_t>;

const std::filesystem::path kData =
    std::filesystem::path(NIBBLE_SOURCE_DIR) / ".." / "shared" / "data";

std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}
Result<std::unique_ptr<Tokenizer>> make(
    const std::vector<std::pair<std::string, std::string>>& texts) {
  std::map<std::string, Bytes> files;
  for (const auto& [name, text] : texts)
    files[name] = Bytes::copy_of(text.data(), text.size());
  return make_tokenizer(files, 1 << 20);
}

TEST(SentencePiece, BpeAndUnigram) {
  const auto bpe = make({{"tokenizer.model", small_model(2)}});
  ASSERT_TRUE(bpe.ok()) << bpe.status().message();
  // The extra spaces go, one is put first; abb is unused, so it is cut as it was made.
  EXPECT_THAT(*(*bpe)->encode("  ab  abb "), ElementsAre(1, 8, 8, 5));
  EXPECT_EQ((*bpe)->decode(*(*bpe)->encode("ab abb")), "ab abb");
  EXPECT_EQ((*bpe)->bos(), 1);
  EXPECT_THAT((*bpe)->eos(), ElementsAre(2));
  // Unknown characters side by side are one token; user-defined ones are never cut.
  EXPECT_THAT(*(*bpe)->encode_without_special("xyz<mask>a"), ElementsAre(3, 0, 9, 4));
  EXPECT_EQ((*bpe)->decode(Ids{3, 0, 9, 1, 4}), " \u2047 <mask>a");
  EXPECT_THAT(*(*bpe)->encode_without_special(""), ElementsAre());

  const auto unigram = make({{"tokenizer.model", small_model(1)}});
  ASSERT_TRUE(unigram.ok()) << unigram.status().message();
  // "▁" + "a" is -3 and beats "▁a", -5.
  EXPECT_THAT(*(*unigram)->encode_without_special("ab"), ElementsAre(3, 6));
  EXPECT_THAT(*(*unigram)->encode_without_special("a"), ElementsAre(3, 4));
  EXPECT_THAT(*(*unigram)->encode_without_special("axxb"), ElementsAre(3, 4, 0, 5));

  const auto bytes = make({{"tokenizer.model", small_model(2, true)}});
  EXPECT_THAT(*(*bytes)->encode_without_special("ac"), ElementsAre(7, 11));
  EXPECT_EQ((*bytes)->decode(Ids{7, 11}), "ac");

  const auto plain = make(
      {{"tokenizer.model", small_model(2)},
       {"tokenizer_config.json", R"({"add_bos_token": false, "add_eos_token": true})"}});
  EXPECT_THAT(*(*plain)->encode("a"), ElementsAre(7, 2));
  EXPECT_EQ((*plain)->bos(), -1);
}

TEST(SentencePiece, Llama2Vectors) {
  const auto path = kData / "tokenizers/llama2_tokenizer.model";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "needs the shared data";
  const auto tokenizer = make({{"tokenizer.model", slurp(path)}});
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ((*tokenizer)->vocabulary(), 32000);
  const auto vectors = kData / "tokenizers/gguf_vocab/ggml-vocab-llama-spm.gguf";
  const std::string inputs = slurp(vectors.string() + ".inp"),
                    separator = "\n__ggml_vocab_test__\n";
  std::istringstream outputs(slurp(vectors.string() + ".out"));
  int count = 0;
  for (size_t at = 0; at <= inputs.size(); ++count) {
    const size_t end = std::min(inputs.find(separator, at), inputs.size());
    std::string line;
    std::getline(outputs, line);
    Ids expected;
    std::istringstream numbers(line);
    for (int32_t id; numbers >> id;) expected.push_back(id);
    const std::string text = inputs.substr(at, end - at);
    EXPECT_EQ(*(*tokenizer)->encode_without_special(text), expected) << text;
    at = end + separator.size();
  }
  EXPECT_EQ(count, 47);
}

TEST(SentencePiece, DamagedFiles) {
  const auto message = [](const std::string& file, StatusCode code) {
    const auto made = make({{"tokenizer.model", file}});
    EXPECT_EQ(made.status().code(), code);
    return made.status().message();
  };
  const std::string tail = "; the file is damaged or not a SentencePiece model";
  EXPECT_EQ(message("", StatusCode::data_loss),
            "[tokenizer] tokenizer.model: pieces were required; found none" + tail);
  const std::string good = small_model(2);
  EXPECT_EQ(
      message(good.substr(0, good.size() - 3), StatusCode::data_loss),
      cat("[tokenizer] tokenizer.model: a protobuf field was required at byte ",
          good.size() - 12, " of ", good.size() - 3, "; found none that ends", tail));
  EXPECT_EQ(message(piece("", 0), StatusCode::data_loss),
            "[tokenizer] tokenizer.model: piece 0 with a text, a finite score and a type "
            "from 1 to 6 was required; found \"\", 0 and 1" +
                tail);
  EXPECT_THAT(message(piece("a", NAN), StatusCode::data_loss), HasSubstr("finite score"));
  EXPECT_THAT(message(piece("a", 0, 9), StatusCode::data_loss), HasSubstr("0 and 9"));
  EXPECT_EQ(
      message(piece("a", 0), StatusCode::data_loss),
      "[tokenizer] tokenizer.model: an unknown piece was required; found none" + tail);
  EXPECT_EQ(
      message(small_model(4), StatusCode::unsupported),
      "[tokenizer] tokenizer.model: model_type 1 (Unigram) or 2 (BPE) was required; "
      "found 4 (characters); evaluate with token ids from a safetensors file "
      "instead");
  EXPECT_EQ(
      message(good + bytes_field(3, bytes_field(2, "abc")), StatusCode::data_loss),
      "[tokenizer] tokenizer.model normalizer: a precompiled_charsmap of a trie and its "
      "replacements was required; found 3 bytes for a trie of 0; the file is damaged");
  EXPECT_THAT(
      message(good + bytes_field(5, bytes_field(2, "abc")), StatusCode::unsupported),
      HasSubstr("a model without denormalizer was required"));
}

TEST(PlainFiles, Gpt2AndBert) {
  json vocabulary = json::object();
  int id = 0;
  for (const std::string& character : byte_alphabet()) vocabulary[character] = id++;
  vocabulary["\u0120a"] = id++;
  vocabulary["<|endoftext|>"] = id++;
  const std::string merges = "#version: 0.2\n\u0120 a\n";
  const auto gpt2 = make({{"vocab.json", vocabulary.dump()}, {"merges.txt", merges}});
  ASSERT_TRUE(gpt2.ok()) << gpt2.status().message();
  EXPECT_THAT(*(*gpt2)->encode("a a<|endoftext|>"), ElementsAre('a', 256, 257));
  EXPECT_EQ((*gpt2)->decode(Ids{'a', 256, 257}), "a a");
  EXPECT_THAT((*gpt2)->eos(), ElementsAre(257));
  EXPECT_EQ(
      make({{"vocab.json", vocabulary.dump()}, {"merges.txt", "a zz\n"}})
          .status()
          .message(),
      "[tokenizer] merges.txt: merge 0 of two tokens into a third was required; found "
      "\"a\" and \"zz\"; the file is damaged");
  EXPECT_EQ(
      make({{"vocab.json", "[]"}, {"merges.txt", ""}}).status().message(),
      "[tokenizer] vocab.json: a JSON object was required; it does not parse as one; "
      "the file is damaged");
  EXPECT_EQ(make({{"vocab.json", "{\"a\": -1}"}, {"merges.txt", ""}}).status().message(),
            "[tokenizer] vocab.json: an id for \"a\" was required; found -1; the file is "
            "damaged");
  EXPECT_EQ(make({{"vocab.json", "{}"}}).status().code(), StatusCode::not_found);

  const std::string lines = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\n##s\r\n";
  const auto bert = make({{"vocab.txt", lines}});
  ASSERT_TRUE(bert.ok()) << bert.status().message();
  EXPECT_THAT(*(*bert)->encode("Hellos Hello[SEP]"), ElementsAre(2, 4, 5, 4, 3, 3));
  const auto cased = make(
      {{"vocab.txt", lines}, {"tokenizer_config.json", R"({"do_lower_case": false})"}});
  EXPECT_THAT(*(*cased)->encode_without_special("Hello"), ElementsAre(1));
  EXPECT_EQ(
      make({{"vocab.txt", "a\nb\n"}}).status().message(),
      "[tokenizer] vocab.txt: a token a line, [UNK] among them, was required; found 2 "
      "lines without it; the file is damaged");
}

TEST(PlainFiles, Gpt2Vectors) {
  const auto folder = kData / "tokenizers";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "needs the shared data";
  const auto made = make({{"vocab.json", slurp(folder / "gpt2_vocab.json")},
                          {"merges.txt", slurp(folder / "gpt2_merges.txt")}});
  ASSERT_TRUE(made.ok()) << made.status().message();
  EXPECT_EQ((*made)->vocabulary(), 50257);
  EXPECT_THAT(*(*made)->encode("Hello world<|endoftext|>"),
              ElementsAre(15496, 995, 50256));
}

std::vector<std::string> matches(std::string_view expression, std::string_view text) {
  const auto regex = Regex::compile(expression, "pre_tokenizer");
  EXPECT_TRUE(regex.ok()) << regex.status().message();
  std::vector<Span> spans;
  if (regex.ok()) {
    EXPECT_TRUE(regex->find_all(text, spans).ok());
  }
  std::vector<std::string> out;
  for (const Span& span : spans)
    out.emplace_back(text.substr(span.begin, span.end - span.begin));
  return out;
}

// What Oniguruma reads otherwise than PCRE2; tests/interop compares whole expressions.
TEST(Regex, OnigurumasSyntax) {
  EXPECT_THAT(matches("[a[bc]]+", "xabcb]"), ElementsAre("abcb"));
  EXPECT_THAT(matches("\\h+", "xAF09g"), ElementsAre("AF09"));
  EXPECT_THAT(matches("\\s", "\u180e\u0085\u2028"), ElementsAre("\u0085", "\u2028"));
  EXPECT_THAT(matches("[^\\S\\n]+", " \t\n\u180e"), ElementsAre(" \t"));
  EXPECT_THAT(matches("\\w+", "a\u0301b-\u0663"), ElementsAre("a\u0301b", "\u0663"));
  EXPECT_THAT(matches("^a|b$", "ab\nab"), ElementsAre("a", "b", "a", "b"));
  EXPECT_THAT(matches("(?m:a.)b{,2}", "a\nbbb"), ElementsAre("a\nbb"));
  EXPECT_THAT(matches("(?i:'S)", "'s'\u017f"), ElementsAre("'s", "'\u017f"));
  EXPECT_THAT(matches("\\u4e2d{", "\u4e2d{"), ElementsAre("\u4e2d{"));
  EXPECT_THAT(matches("(?=b)|c", "abc"), ElementsAre("", "c"));
  const auto refused = [](std::string_view expression) {
    const auto made = Regex::compile(expression, "pre_tokenizer");
    EXPECT_EQ(made.status().code(), StatusCode::unsupported) << expression;
    return made.status().message();
  };
  EXPECT_EQ(
      refused("a{2}+"),
      "[tokenizer] tokenizer.json pre_tokenizer: a regular expression of literals, "
      "sets, groups and quantifiers was required; found a quantifier after an "
      "interval at byte 1 of a{2}+; evaluate with token ids from a safetensors file "
      "instead");
  EXPECT_THAT(refused("[[:alpha:]]"), HasSubstr("a POSIX class at byte 1"));
  EXPECT_THAT(refused("[a[^b]]"), HasSubstr("a negated set inside a set"));
  EXPECT_THAT(refused("[a"), HasSubstr("a set that does not end"));
  EXPECT_THAT(refused("\\"), HasSubstr("a backslash at the end"));
  EXPECT_THAT(refused("\\K"), HasSubstr("found \\K at byte 0"));
  EXPECT_THAT(refused("(?~a)"), HasSubstr("found (?~a at byte 0"));
  EXPECT_THAT(refused("\\p{Nonsense}"), HasSubstr("PCRE2 reads was required"));
  std::vector<Span> none;
  EXPECT_EQ(Regex::compile("a", "x")->find_all("b\xff", none).message(),
            "[tokenizer] regular expression: UTF-8 text was required; byte 1 is not part "
            "of UTF-8; correct the text");
  // Backtracking without end is stopped and said.
  const std::string many = std::string(60, 'a') + "b!";
  const auto slow = Regex::compile("((a|a)*)*b(?!!)", "x")->find_all(many, none);
  EXPECT_EQ(slow.code(), StatusCode::resource_exhausted);
  EXPECT_THAT(slow.message(), HasSubstr("matching within PCRE2's limits was required"));
}

TEST(Charsmap, DamagedOnesAreRefusedOrHarmless) {
  const auto message = [](std::string_view text) {
    return Charsmap::from_base64(text, "x").status().message();
  };
  EXPECT_EQ(
      message("a*b"),
      "[tokenizer] x: precompiled_charsmap in base64 was required; found the byte 42; "
      "the file is damaged");
  EXPECT_THAT(message(""), HasSubstr("found 0 bytes for a trie of 0"));
  EXPECT_THAT(message("/////w=="), HasSubstr("found 4 bytes for a trie of 4294967295"));
  SplitMix64 random(2);
  for (int round = 0; round < 200; ++round) {
    std::string blob = {64, 0, 0, 0};
    for (int i = 0; i < 80; ++i) blob += static_cast<char>(random.below(256));
    const auto map = Charsmap::from_blob(blob, "x");
    ASSERT_TRUE(map.ok());
    for (int i = 0; i < 20; ++i) {
      const std::string text = {static_cast<char>(random.below(256)),
                                static_cast<char>(random.below(256)), 'a'};
      (void)map->longest(text);
      (void)map->map_graphemes(text);
    }
  }
}

TEST(StreamDecoder, HoldsBackWhatIsNotSettled) {
  std::string model = small_pieces();
  for (int byte : {0xe4, 0xbd, 0xa0, 0xff})
    model += piece(
        cat("<0x", "0123456789ABCDEF"[byte >> 4], "0123456789ABCDEF"[byte & 15], ">"), 0,
        6);
  model += bytes_field(2, number_field(3, 2) + number_field(35, 1)) +
           bytes_field(3, bytes_field(1, "identity"));
  const auto tokenizer = make({{"tokenizer.model", model}});
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  StreamDecoder stream(**tokenizer);
  EXPECT_EQ(stream.push(1), "");    // BOS
  EXPECT_EQ(stream.push(7), "a");   // the first space is dropped
  EXPECT_EQ(stream.push(7), " a");  // the second is not
  EXPECT_EQ(stream.push(12), "");   // the first byte of a character of three
  EXPECT_EQ(stream.push(13), "");
  EXPECT_EQ(stream.push(14), "\u4f60");
  EXPECT_EQ(stream.push(2), "");  // EOS
  EXPECT_EQ(stream.push(8), " ab");
  EXPECT_EQ(stream.push(12), "");
  EXPECT_EQ(stream.finish(), "\ufffd");
  EXPECT_EQ(stream.push(7), "a");  // from the start again
  // What never becomes a character is given out in the end.
  std::string text;
  for (int i = 0; i < 100; ++i) text += stream.push(15);
  EXPECT_FALSE(text.empty());
  text += stream.finish();
  std::string expected;
  for (int i = 0; i < 100; ++i) expected += "\ufffd";
  EXPECT_EQ(text, expected);
}

// Whatever happens to the bytes of a file, it is read or refused, never a crash.
TEST(PlainFiles, MutatedFilesAreReadOrRefused) {
  json unigram = {
      {"pre_tokenizer", {{"type", "Metaspace"}}},
      {"decoder", {{"type", "Metaspace"}}},
      {"model",
       {{"type", "Unigram"},
        {"unk_id", 0},
        {"vocab", {{"<unk>", 0.0}, {"\u2581", -1.5}, {"a", -2.5}, {"ab", -3}}}}}};
  json regex = unigram;
  regex["pre_tokenizer"] = {
      {"type", "Split"},
      {"behavior", "Isolated"},
      {"pattern", {{"Regex", "[^\\r\\n\\p{L}[ab]]?+\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|."}}}};
  SplitMix64 random(4);
  int read = 0, refused = 0;
  for (const auto& [name, file] : std::vector<std::pair<std::string, std::string>>{
           {"tokenizer.model", small_model(1, true)},
           {"tokenizer.model", small_model(2)},
           {"tokenizer.json", unigram.dump()},
           {"tokenizer.json", regex.dump()},
           {"vocab.txt", "[UNK]\na\n##b\n"}}) {
    for (int round = 0; round < 300; ++round) {
      std::string changed = file;
      for (uint64_t flips = 1 + random.below(3); flips > 0; --flips)
        changed[random.below(changed.size())] = static_cast<char>(random.below(256));
      if (random.below(4) == 0) changed.resize(random.below(changed.size()));
      const auto made = make({{name, changed}});
      if (!made.ok()) {
        ++refused;
        EXPECT_EQ(made.status().message().rfind("[tokenizer] ", 0), 0u)
            << made.status().message();
        continue;
      }
      ++read;
      const auto ids = (*made)->encode("ab \u4f60 a<mask>b 123");
      StreamDecoder stream(**made);
      if (ids.ok())
        for (int32_t id : *ids) (void)stream.push(id);
      (void)stream.finish();
    }
  }
  EXPECT_GT(read, 100);
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace nibble
