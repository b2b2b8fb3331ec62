#include "kernels/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/base/json.h"
#include "kernels/base/splitmix64.h"
#include "kernels/tokenizer/byte_alphabet.h"
#include "kernels/tokenizer/pre_tokenize.h"
#include "kernels/tokenizer/unicode.h"

namespace nibble {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

const std::filesystem::path kData =
    std::filesystem::path(NIBBLE_SOURCE_DIR) / ".." / "shared" / "data";

std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}
Bytes bytes_of(const std::string& text) {
  return Bytes::copy_of(text.data(), text.size());
}

#define SKIP_WITHOUT(path)                               \
  if (!std::filesystem::exists(path))                    \
  GTEST_SKIP() << "needs " << (path).filename().string() \
               << " of the shared data, which is absent"

std::vector<std::string> split(std::string_view text, SplitPattern pattern) {
  std::vector<std::string_view> pieces;
  split_text(text, pattern, pieces);
  return {pieces.begin(), pieces.end()};
}

// A tokenizer.json over the byte alphabet with a few merges.
json small_tokenizer() {
  json vocab = json::object();
  int id = 0;
  vocab["<|bos|>"] = id++;
  vocab["<|eos|>"] = id++;
  for (const std::string& character : byte_alphabet()) vocab[character] = id++;
  json merges = json::array();
  for (const auto& [a, b] :
       std::vector<std::pair<std::string, std::string>>{{"a", "b"},
                                                        {"\u0120", "c"},
                                                        {"ab", "\u0120c"},
                                                        {"l", "o"},
                                                        {"lo", "w"},
                                                        {"e", "r"}}) {
    vocab[a + b] = id++;
    merges.push_back({a, b});
  }
  const auto special = [](int at, const char* content) {
    return json{{"id", at},        {"content", content}, {"single_word", false},
                {"lstrip", false}, {"rstrip", false},    {"normalized", false},
                {"special", true}};
  };
  return {{"version", "1.0"},
          {"added_tokens", {special(0, "<|bos|>"), special(1, "<|eos|>")}},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}
Result<std::unique_ptr<Tokenizer>> make(const json& root, int64_t vocabulary = 100000) {
  return make_tokenizer({{"tokenizer.json", bytes_of(root.dump())}}, vocabulary);
}

// 47 texts with the ids that the reference gives them; the last is empty.
void check_vectors(const Tokenizer& tokenizer, const std::filesystem::path& path) {
  const std::string inputs = slurp(path.string() + ".inp"),
                    separator = "\n__ggml_vocab_test__\n";
  std::istringstream outputs(slurp(path.string() + ".out"));
  int count = 0;
  for (size_t at = 0; at <= inputs.size(); ++count) {
    const size_t end = std::min(inputs.find(separator, at), inputs.size());
    const std::string text = inputs.substr(at, end - at);
    std::string line;
    std::getline(outputs, line);
    std::vector<int32_t> expected;
    std::istringstream numbers(line);
    for (int32_t id; numbers >> id;) expected.push_back(id);
    EXPECT_EQ(*tokenizer.encode_without_special(text), expected) << text;
    // Without BOS before it, the space that llama2.c puts first stays.
    const std::string decoded = tokenizer.decode(expected);
    EXPECT_TRUE(decoded == text || decoded == " " + text) << decoded;
    at = end + separator.size();
  }
  EXPECT_EQ(count, 47);
}

TEST(Unicode, ClassesAndInvalidBytes) {
  EXPECT_TRUE(is_letter(0xe9) && is_letter(0x4e2d) && !is_letter('1') && !is_letter(-1));
  EXPECT_TRUE(is_number(0x2160) && is_number(0xbd) && !is_number('a'));
  EXPECT_TRUE(is_space(0x3000) && is_space('\t') && !is_space(0x200b));
  EXPECT_EQ(first_invalid_utf8("caf\xc3\xa9"), -1);
  EXPECT_EQ(first_invalid_utf8("ab\xff"), 2);
  EXPECT_EQ(first_invalid_utf8("ab\xc3"), 2);
  // Unicode's own example (table 3-8): one replacement for each maximal subpart.
  EXPECT_EQ(replace_invalid_utf8("a\xf1\x80\x80\xe1\x80\xc2"
                                 "b\x80"
                                 "c\x80\xbf"
                                 "d"),
            "a\ufffd\ufffd\ufffdb\ufffdc\ufffd\ufffdd");
  EXPECT_EQ(*normalize("e\u0301", NormalForm::nfc), "\u00e9");
  EXPECT_EQ(*normalize("\u00e9", NormalForm::nfd), "e\u0301");
  EXPECT_EQ(normalize("a\xff", NormalForm::nfc).status().message(),
            "[tokenizer] normalizer: UTF-8 text was required; byte 1 is not part of "
            "UTF-8; correct the "
            "text");
}

TEST(ByteAlphabet, SpellsAndReadsEveryByte) {
  EXPECT_EQ(spell_bytes(" \n!"), "\u0120\u010a!");
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  EXPECT_EQ(unspell_bytes(spell_bytes(all)), all);
  EXPECT_EQ(unspell_bytes(" "), std::nullopt);
  EXPECT_EQ(unspell_bytes("\u0144"), std::nullopt);  // U+0143 is the last
  EXPECT_EQ(unspell_bytes("\u0143"), "\xad");
}

TEST(PreTokenize, Gpt2) {
  EXPECT_THAT(split("Hello world, it's 3:45  now \n\n x", SplitPattern::gpt2),
              ElementsAre("Hello", " world", ",", " it", "'s", " 3", ":", "45", " ",
                          " now", " \n\n", " x"));
  EXPECT_THAT(split("I'LL we'll\t", SplitPattern::gpt2),
              ElementsAre("I", "'", "LL", " we", "'ll", "\t"));
}

TEST(PreTokenize, Llama3AndQwen2) {
  EXPECT_THAT(split("I'LL pay 12345 (now)!\n\n  ok \n", SplitPattern::llama3),
              ElementsAre("I", "'LL", " pay", " ", "123", "45", " (", "now", ")!\n\n",
                          " ", " ok", " \n"));
  EXPECT_THAT(split("12345", SplitPattern::qwen2), ElementsAre("1", "2", "3", "4", "5"));
  EXPECT_THAT(split("a12b", SplitPattern::digits), ElementsAre("a", "1", "2", "b"));
  EXPECT_THAT(split("a12b", SplitPattern::digit_runs), ElementsAre("a", "12", "b"));
}

// Whatever the bytes, the pieces put together are the text.
TEST(PreTokenize, NothingIsLost) {
  SplitMix64 random(5);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    const char* parts[] = {" ",      "\n",     "\r",   "a",    "Z", "'s",        "9",
                           "\u00e9", "\u3000", "\xff", "\xc3", "!", "\U0001f600"};
    for (uint64_t i = random.below(30); i > 0; --i)
      text += parts[random.below(std::size(parts))];
    for (SplitPattern pattern :
         {SplitPattern::gpt2, SplitPattern::llama3, SplitPattern::qwen2,
          SplitPattern::digits, SplitPattern::digit_runs}) {
      std::string joined;
      for (const std::string& piece : split(text, pattern)) {
        EXPECT_FALSE(piece.empty());
        joined += piece;
      }
      EXPECT_EQ(joined, text);
    }
  }
}

TEST(Llama2cTokenizer, Stories260K) {
  const auto path = kData / "models/stories260K/tok512.bin";
  SKIP_WITHOUT(path);
  auto tokenizer = make_tokenizer({{"tokenizer.bin", bytes_of(slurp(path))}}, 512);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  const std::string text = "Once upon a time, there was a little girl named Lily.";
  const auto ids = (*tokenizer)->encode(text);
  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(*ids, ElementsAre(1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315,
                                421, 395, 317, 426));
  EXPECT_EQ((*tokenizer)->decode(*ids), text);
  EXPECT_EQ((*tokenizer)->vocabulary(), 512);
  EXPECT_EQ((*tokenizer)->bos(), 1);
  const auto odd =
      (*tokenizer)->encode("\u4e2d\xff");  // bytes, and a byte that is not UTF-8
  EXPECT_THAT(*odd, ElementsAre(1, testing::_, 0xe4 + 3, 0xb8 + 3, 0xad + 3, 0xff + 3));
  EXPECT_EQ((*tokenizer)->decode(*odd), "\u4e2d\xff");
  EXPECT_EQ((*tokenizer)->encode("")->size(), 1u);

  const auto wrong = make_tokenizer({{"tokenizer.bin", bytes_of(slurp(path))}}, 500);
  EXPECT_EQ(wrong.status().code(), StatusCode::out_of_range);
  EXPECT_EQ(wrong.status().message(),
            "[tokenizer] tokenizer.bin: ids below 500 (the model's vocabulary) were "
            "required; its ids "
            "reach 511; this is the wrong tokenizer for this model, give its own with "
            "--tokenizer FILE");
}

TEST(Llama2cTokenizer, Llama2Vectors) {
  const auto path = kData / "tokenizers/llama2_tokenizer.bin";
  const auto vectors = kData / "tokenizers/gguf_vocab/ggml-vocab-llama-spm.gguf";
  SKIP_WITHOUT(path);
  auto tokenizer = make_tokenizer({{"tokenizer.bin", bytes_of(slurp(path))}}, 32000);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  check_vectors(**tokenizer, vectors);
}

TEST(Llama2cTokenizer, DamagedFiles) {
  std::string file(4, '\0');
  file[0] = 7;  // the longest piece
  for (int i = 0; i < 259; ++i) {
    const std::string piece = cat("piece", i % 10);
    const float score = static_cast<float>(-i);
    const uint32_t length = static_cast<uint32_t>(piece.size());
    file.append(reinterpret_cast<const char*>(&score), 4);
    file.append(reinterpret_cast<const char*>(&length), 4);
    file += piece;
  }
  EXPECT_TRUE(make_tokenizer({{"tokenizer.bin", bytes_of(file)}}, 259).ok());
  const auto message = [&](const std::string& text) {
    const auto result = make_tokenizer({{"tokenizer.bin", bytes_of(text)}}, 259);
    EXPECT_EQ(result.status().code(), StatusCode::data_loss);
    return result.status().message();
  };
  EXPECT_EQ(message("ab"),
            "[tokenizer] tokenizer.bin: a 4-byte header was required; found 2 bytes; the "
            "file is truncated");
  EXPECT_THAT(
      message(file.substr(0, file.size() - 3)),
      HasSubstr(
          "tokenizer.bin piece 258: a score, a length of at most 7 and that many bytes"));
  EXPECT_THAT(message(file.substr(0, file.size() - 14)),
              HasSubstr("at least 259 pieces"));
  std::string long_piece = file;
  long_piece[8] = 100;
  EXPECT_THAT(message(long_piece), HasSubstr("piece 0: a score, a length of at most 7"));
}

TEST(ByteLevelTokenizer, Gpt2Vectors) {
  const auto vocabulary = kData / "tokenizers/gpt2_vocab.json";
  const auto vectors = kData / "tokenizers/gguf_vocab/ggml-vocab-gpt-2.gguf";
  SKIP_WITHOUT(vocabulary);
  json root = small_tokenizer();
  root["added_tokens"] = json::array();
  root["model"]["vocab"] = parse_json_or_throw(slurp(vocabulary));
  root["model"]["merges"] = json::array();
  std::istringstream merges(slurp(kData / "tokenizers/gpt2_merges.txt"));
  for (std::string line; std::getline(merges, line);)
    if (!line.empty() && line.rfind("#version", 0) != 0)
      root["model"]["merges"].push_back(line);
  auto tokenizer = make(root);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  check_vectors(**tokenizer, vectors);
}

TEST(ByteLevelTokenizer, Docs14m) {
  const auto directory = kData / "models/docs14m";
  SKIP_WITHOUT(directory);
  std::map<std::string, Bytes> files;
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
    files[name] = bytes_of(slurp(directory / name));
  auto tokenizer = make_tokenizer(files, 4096);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_THAT(*(*tokenizer)->encode("Returns the name of the"),
              ElementsAre(2870, 266, 598, 299, 266));
  EXPECT_EQ((*tokenizer)->bos(), -1);
  EXPECT_THAT((*tokenizer)->eos(), ElementsAre(1));
  EXPECT_EQ((*tokenizer)->vocabulary(), 4096);
}

// Tokens that are looked for after the normalizer, longest first, and are not special.
TEST(ByteLevelTokenizer, CodegenAddedTokens) {
  const auto path = kData / "tokenizers/hf_tokenizer_json/gpt2_codegen_tokenizer.json";
  SKIP_WITHOUT(path);
  auto tokenizer = make_tokenizer({{"tokenizer.json", bytes_of(slurp(path))}}, 51200);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  const std::string text = "def f(x):\n    return x\n\t\ty = 1<|endoftext|>";
  const auto ids = (*tokenizer)->encode(text);
  EXPECT_THAT(*ids, ElementsAre(4299, 277, 7, 87, 2599, 198, 50284, 7783, 2124, 198,
                                50294, 88, 796, 352, 50256));
  EXPECT_EQ((*tokenizer)->decode(*ids), "def f(x):\n    return x\n\t\ty = 1");
}

// SentencePiece's BPE as tokenizer.json writes it: Prepend, Replace, byte fallback.
TEST(JsonTokenizer, Phi3Vectors) {
  const auto path = kData / "tokenizers/hf_tokenizer_json/phi3_spm_bpe_tokenizer.json";
  SKIP_WITHOUT(path);
  const auto tokenizer =
      make_tokenizer({{"tokenizer.json", bytes_of(slurp(path))}}, 32064);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  check_vectors(**tokenizer, kData / "tokenizers/gguf_vocab/ggml-vocab-phi-3.gguf");
  EXPECT_THAT(*(*tokenizer)->encode("a<|end|> b"),
              ElementsAre(1, 263, 32007, testing::_, testing::_));
}

json word_piece_tokenizer() {
  json vocab = json::object();
  int id = 0;
  for (const char* piece : {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able",
                            "affable", "caf", "##e", ",", "\u4f60", "a", "##b"})
    vocab[piece] = id++;
  const auto around = [](const char* text, int type) {
    return json{{"Sequence", {{"id", text}, {"type_id", type}}}};
  };
  const auto token = [](const char* name, int type) {
    return json{{"SpecialToken", {{"id", name}, {"type_id", type}}}};
  };
  return {{"normalizer", {{"type", "BertNormalizer"}}},
          {"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single", {token("[CLS]", 0), around("A", 0), token("[SEP]", 0)}},
            {"pair",
             {token("[CLS]", 0), around("A", 0), token("[SEP]", 0), around("B", 1),
              token("[SEP]", 1)}},
            {"special_tokens",
             {{"[CLS]", {{"id", "[CLS]"}, {"ids", {2}}}},
              {"[SEP]", {{"id", "[SEP]"}, {"ids", {3}}}}}}}},
          {"decoder", {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}}},
          {"added_tokens", json::array()},
          {"model",
           {{"type", "WordPiece"},
            {"unk_token", "[UNK]"},
            {"continuing_subword_prefix", "##"},
            {"max_input_chars_per_word", 8},
            {"vocab", vocab}}}};
}

TEST(WordPiece, BertEndToEnd) {
  auto made = make(word_piece_tokenizer());
  ASSERT_TRUE(made.ok()) << made.status().message();
  const Tokenizer& tokenizer = **made;
  // Lower case, accents off, Chinese characters alone, the longest piece first.
  EXPECT_THAT(*tokenizer.encode("UNaffable, Caf\u00e9\u4f60\t a"),
              ElementsAre(2, 1, 10, 8, 9, 11, 12, 3));  // 9 characters: too long a word
  EXPECT_THAT(*tokenizer.encode_without_special("unaffab unaff ab"),
              ElementsAre(1, 4, 5, 12, 13));
  const auto pair = tokenizer.encode_pair("a", "ab");
  ASSERT_TRUE(pair.ok());
  EXPECT_THAT(pair->ids, ElementsAre(2, 12, 3, 12, 13, 3));
  EXPECT_THAT(pair->types, ElementsAre(0, 0, 0, 1, 1, 1));
  EXPECT_EQ(tokenizer.decode(*tokenizer.encode_without_special("unaff, ab")),
            "unaff, ab");
  EXPECT_EQ(tokenizer.bos(), 2);
  EXPECT_EQ(tokenizer.encode("a\xff").status().message(),
            "[tokenizer] normalizer: UTF-8 text was required; byte 1 is not part of "
            "UTF-8; correct the text");
  json root = word_piece_tokenizer();
  root["model"]["vocab"].erase("[UNK]");
  EXPECT_EQ((*make(root))->encode("zz").status().message(),
            "[tokenizer] text: \"zz\" has no token, and the unknown token \"[UNK]\" is "
            "not in the vocabulary; use a tokenizer that covers this text");
}

TEST(ByteLevelTokenizer, MergesTemplateAndEos) {
  json root = small_tokenizer();
  root["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       {{{"type", "ByteLevel"}},
        {{"type", "TemplateProcessing"},
         {"single",
          {{{"SpecialToken", {{"id", "<|bos|>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
         {"special_tokens", {{"<|bos|>", {{"id", "<|bos|>"}, {"ids", {0}}}}}}}}}};
  const std::string config = R"({"eos_token": {"content": "<|eos|>"}})";
  auto made = make_tokenizer({{"tokenizer.json", bytes_of(root.dump())},
                              {"tokenizer_config.json", bytes_of(config)}},
                             300);
  ASSERT_TRUE(made.ok()) << made.status().message();
  const Tokenizer& tokenizer = **made;
  EXPECT_EQ(tokenizer.bos(), 0);
  EXPECT_THAT(tokenizer.eos(), ElementsAre(1));
  const json& vocab = root["model"]["vocab"];
  EXPECT_THAT(*tokenizer.encode("lower<|eos|>ab"),
              ElementsAre(0, vocab["low"], vocab["er"], 1, vocab["ab"]));
  EXPECT_THAT(*tokenizer.encode_without_special("ab c"),
              ElementsAre(vocab["ab"], vocab["\u0120c"]));
  EXPECT_EQ(tokenizer.decode(*tokenizer.encode("lower<|eos|>ab")), "lowerab");
  // Any bytes go there and back; what is not UTF-8 is replaced in the text only.
  EXPECT_EQ(tokenizer.encode("\xff")->size(), 2u);
  EXPECT_EQ(tokenizer.decode(*tokenizer.encode("\xff")), "\ufffd");
}

TEST(ByteLevelTokenizer, IgnoreMergesAndStringMerges) {
  json root = small_tokenizer();
  const auto ids = [&] { return *(*make(root))->encode("lower"); };
  const auto pairs = ids();
  for (json& merge : root["model"]["merges"])
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  EXPECT_EQ(ids(), pairs);
  root["model"]["vocab"]["lower"] = 270;
  EXPECT_EQ(ids(), pairs);
  root["model"]["ignore_merges"] = true;
  EXPECT_THAT(ids(), ElementsAre(270));
}

TEST(ByteLevelTokenizer, SequenceOfSplitAndByteLevel) {
  json root = small_tokenizer();
  root["normalizer"] = {{"type", "NFC"}};
  const json split = {
      {"type", "Split"},
      {"pattern", {{"Regex", std::string(split_regex(SplitPattern::qwen2))}}},
      {"behavior", "Isolated"},
      {"invert", false}};
  const json level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  root["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, level}}};
  auto tokenizer = make(root);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ(*(*tokenizer)->encode("e\u0301"), *(*tokenizer)->encode("\u00e9"));
  EXPECT_EQ((*tokenizer)->encode("a\xff").status().code(), StatusCode::invalid_argument);
}

TEST(ByteLevelTokenizer, UnknownComponentsAreNamed) {
  const auto message = [](const json& root, StatusCode code) {
    const auto result = make(root);
    EXPECT_EQ(result.status().code(), code) << result.status().message();
    return result.status().message();
  };
  json root = small_tokenizer();
  root["pre_tokenizer"] = {{"type", "UnicodeScripts"}};
  EXPECT_EQ(message(root, StatusCode::unsupported),
            "[tokenizer] tokenizer.json pre_tokenizer: one of Sequence, "
            "BertPreTokenizer, ByteLevel, CharDelimiterSplit, Digits, FixedLength, "
            "Metaspace, Punctuation, Split, Whitespace, WhitespaceSplit was required; "
            "found UnicodeScripts; evaluate with token ids from a safetensors file "
            "instead");
  root = small_tokenizer();
  root["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"},
                              {"pattern", {{"Regex", "a[b&&c]"}}},
                              {"behavior", "Isolated"}},
                             {{"type", "ByteLevel"}}}}};
  EXPECT_EQ(message(root, StatusCode::unsupported),
            "[tokenizer] tokenizer.json pre_tokenizer: a regular expression of literals, "
            "sets, groups and quantifiers was required; found an intersection of sets at "
            "byte 3 of a[b&&c]; evaluate with token ids from a safetensors file instead");
  root["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a";
  EXPECT_THAT(message(root, StatusCode::unsupported),
              HasSubstr("a regular expression that PCRE2 reads was required; found (a, "
                        "which as (a has at byte 2: missing closing parenthesis"));
  root["pre_tokenizer"]["pretokenizers"][0] = {
      {"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Sideways"}};
  EXPECT_THAT(message(root, StatusCode::unsupported),
              HasSubstr("Contiguous was required; found \"Sideways\""));
  root = small_tokenizer();
  root["normalizer"] = {{"type", "Uppercase"}};
  EXPECT_THAT(message(root, StatusCode::unsupported),
              HasSubstr("normalizer: one of Sequence, BertNormalizer, ByteLevel, "));
  root = small_tokenizer();
  root["post_processor"] = {{"type", "ElectraProcessing"}};
  EXPECT_THAT(message(root, StatusCode::unsupported),
              HasSubstr("found ElectraProcessing"));
  root = small_tokenizer();
  root["decoder"] = {{"type", "CTC"}};
  EXPECT_THAT(message(root, StatusCode::unsupported), HasSubstr("found CTC"));
  root = small_tokenizer();
  root["model"]["type"] = "Morphology";
  EXPECT_THAT(message(root, StatusCode::unsupported),
              HasSubstr("model: one of BPE, Unigram, WordLevel, WordPiece was required; "
                        "found Morphology"));
  root = small_tokenizer();
  root["model"]["dropout"] = 0.1;
  EXPECT_THAT(message(root, StatusCode::unsupported),
              HasSubstr("dropout null or 0 was required"));
  root = small_tokenizer();
  root["model"]["merges"].push_back({"a", "nothing"});
  EXPECT_THAT(
      message(root, StatusCode::data_loss),
      HasSubstr(
          R"(merge 6 of two tokens into a third was required; found "a" and "nothing")"));
  root = small_tokenizer();
  root["model"]["vocab"]["z9"] = -1;
  EXPECT_THAT(message(root, StatusCode::data_loss),
              HasSubstr("an id for \"z9\" was required; found -1"));
  root = small_tokenizer();
  root["model"]["vocab"]["z9"] = 2000000000;  // must not drive an allocation
  EXPECT_EQ(make(root).status().code(), StatusCode::data_loss);
}

TEST(ByteLevelTokenizer, WrongOrAbsent) {
  EXPECT_EQ(make(small_tokenizer(), 100).status().message(),
            "[tokenizer] tokenizer.json: ids below 100 (the model's vocabulary) were "
            "required; its ids "
            "reach 263; this is the wrong tokenizer for this model, give its own with "
            "--tokenizer FILE");
  EXPECT_EQ(make_tokenizer({}, 100).status().code(), StatusCode::not_found);
  const auto truncated = make_tokenizer(
      {{"tokenizer.json", bytes_of(small_tokenizer().dump().substr(0, 900))}}, 300);
  EXPECT_EQ(truncated.status().code(), StatusCode::data_loss);
  // No byte is dropped without a word.
  json root = small_tokenizer();
  root["model"]["vocab"].erase("Q");
  EXPECT_EQ((*make(root))->encode("aQ").status().message(),
            "[tokenizer] text: \"Q\" has no token, and the tokenizer has no unknown "
            "token; use one that covers this text");
}

// Whatever happens to the bytes of a file, it is read or refused, never a crash; a file
// that is still read encodes.
TEST(Tokenizer, MutatedFilesAreReadOrRefused) {
  std::string scores(4, '\0');
  scores[0] = 9;
  for (int i = 0; i < 260; ++i) {
    const std::string piece = cat("<", i, ">");
    const float score = static_cast<float>(i % 7);
    const uint32_t length = static_cast<uint32_t>(piece.size());
    scores.append(reinterpret_cast<const char*>(&score), 4);
    scores.append(reinterpret_cast<const char*>(&length), 4);
    scores += piece;
  }
  SplitMix64 random(3);
  int read = 0, refused = 0;
  for (const auto& [name, file] :
       {std::pair<std::string, std::string>{"tokenizer.bin", scores},
        {"tokenizer.json", small_tokenizer().dump()},
        {"tokenizer.json", word_piece_tokenizer().dump()}}) {
    for (int round = 0; round < 300; ++round) {
      std::string changed = file;
      for (uint64_t flips = 1 + random.below(3); flips > 0; --flips)
        changed[random.below(changed.size())] = static_cast<char>(random.below(256));
      if (random.below(4) == 0) changed.resize(random.below(changed.size()));
      const auto made = make_tokenizer({{name, bytes_of(changed)}}, 1 << 20);
      if (made.ok()) {
        ++read;
        const auto ids = (*made)->encode("lower ab c\xff");
        if (ids.ok()) (void)(*made)->decode(*ids);
      } else {
        ++refused;
        EXPECT_EQ(made.status().message().rfind("[tokenizer] ", 0), 0u)
            << made.status().message();
      }
    }
  }
  EXPECT_GT(read, 50);
  EXPECT_GT(refused, 50);
}

// The heap makes a long text without spaces cost n log n.
TEST(ByteLevelTokenizer, LongPiece) {
  const auto tokenizer = make(small_tokenizer());
  std::string text;
  for (int i = 0; i < 200000; ++i) text += "low";
  EXPECT_EQ((*tokenizer)->encode(text)->size(), 200000u);
}

}  // namespace
}  // namespace nibble
