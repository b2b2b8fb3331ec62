// The metadata of GGUF files, and the tokenizers that they carry against their vectors.
#include "export/formats/gguf_metadata.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/base/splitmix64.h"

namespace nibble {
namespace {

using testing::HasSubstr;

const std::filesystem::path kData =
    std::filesystem::path(NIBBLE_SOURCE_DIR) / ".." / "shared" / "data";

std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

template <class T>
std::string raw(T value) {
  std::string out(sizeof value, '\0');
  std::memcpy(out.data(), &value, sizeof value);
  return out;
}
std::string text(const std::string& value) { return raw<uint64_t>(value.size()) + value; }
std::string header(uint64_t keys) {
  return "GGUF" + raw<uint32_t>(3) + raw<uint64_t>(0) + raw<uint64_t>(keys);
}

TEST(GgufMetadata, EveryTypeOfValue) {
  const std::string file = header(6) + text("a") + raw<uint32_t>(0) + raw<uint8_t>(200) +
                           text("b") + raw<uint32_t>(5) + raw<int32_t>(-3) + text("c") +
                           raw<uint32_t>(6) + raw<float>(0.5f) + text("d") +
                           raw<uint32_t>(8) + text("xyz") + text("e") + raw<uint32_t>(9) +
                           raw<uint32_t>(8) + raw<uint64_t>(2) + text("p") + text("") +
                           text("f") + raw<uint32_t>(7) + raw<uint8_t>(1);
  const auto metadata = read_gguf_metadata(file);
  ASSERT_TRUE(metadata.ok()) << metadata.status().message();
  const auto value = [&](const char* key) { return metadata->values.find(key)->second; };
  EXPECT_EQ(std::get<uint64_t>(value("a")), 200u);
  EXPECT_EQ(std::get<int64_t>(value("b")), -3);
  EXPECT_EQ(std::get<double>(value("c")), 0.5);
  EXPECT_EQ(std::get<std::string_view>(value("d")), "xyz");
  EXPECT_EQ(std::get<std::vector<std::string_view>>(value("e")).size(), 2u);
  EXPECT_TRUE(std::get<bool>(value("f")));
  EXPECT_EQ(metadata->end, file.size());
  EXPECT_EQ(gguf_vocabulary(*metadata).status().code(), StatusCode::not_found);
}

TEST(GgufMetadata, TheExampleFile) {
  const auto path = kData / "golden/mini.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "needs the shared data";
  const std::string file = slurp(path);
  const auto metadata = read_gguf_metadata(file);
  ASSERT_TRUE(metadata.ok()) << metadata.status().message();
  EXPECT_EQ(metadata->tensors, 2u);
  EXPECT_EQ(
      std::get<std::string_view>(metadata->values.find("general.architecture")->second),
      "llama");
  EXPECT_EQ(std::get<uint64_t>(metadata->values.find("general.alignment")->second), 32u);
  EXPECT_EQ(metadata->end, 0x66u);  // where the first tensor's name begins
}

TEST(GgufMetadata, DamagedFiles) {
  const auto message = [](const std::string& file) {
    const auto metadata = read_gguf_metadata(file);
    EXPECT_EQ(metadata.status().code(), StatusCode::data_loss);
    return metadata.status().message();
  };
  EXPECT_EQ(
      message("GGML"),
      "[gguf] header: \"GGUF\" and version 2 or 3 were required; found 4 bytes that "
      "begin otherwise; the file is damaged");
  EXPECT_EQ(message(header(0).substr(0, 20)),
            "[gguf] header: 24 bytes were required; found 20; the file is damaged");
  EXPECT_EQ(
      message(header(2) + text("a") + raw<uint32_t>(0) + "x"),
      "[gguf] key 1 of 2: a name and a type were required at byte 38; the file of 38 "
      "bytes ends; the file is damaged");
  EXPECT_EQ(
      message(header(1) + text("a") + raw<uint32_t>(13) + "x"),
      "[gguf] key a: a value of a known type within the file of 38 bytes was required "
      "at byte 24; found type 13; the file is damaged");
  EXPECT_THAT(message(header(1) + text("a") + raw<uint32_t>(9) + raw<uint32_t>(0) +
                      raw<uint64_t>(uint64_t{1} << 60)),
              HasSubstr("found type 9"));  // a count that would drive an allocation
  const std::string one = text("a") + raw<uint32_t>(7) + raw<uint8_t>(1);
  EXPECT_EQ(
      message(header(2) + one + one),
      "[gguf] key a: each key once was required; found it twice; the file is damaged");
}

TEST(GgufMetadata, MutatedFilesAreReadOrRefused) {
  GgufVocabulary empty;
  EXPECT_EQ(make_gguf_tokenizer(empty).status().code(), StatusCode::data_loss);
  std::string list = raw<uint32_t>(9) + raw<uint32_t>(8) + raw<uint64_t>(3) +
                     text("<unk>") + text("\u2581") + text("a");
  const std::string file = header(3) + text("tokenizer.ggml.model") + raw<uint32_t>(8) +
                           text("llama") + text("tokenizer.ggml.tokens") + list +
                           text("tokenizer.ggml.token_type") + raw<uint32_t>(9) +
                           raw<uint32_t>(5) + raw<uint64_t>(3) + raw<int32_t>(2) +
                           raw<int32_t>(1) + raw<int32_t>(1);
  SplitMix64 random(6);
  int made = 0;
  for (int round = 0; round < 500; ++round) {
    std::string changed = file;
    changed[random.below(changed.size())] = static_cast<char>(random.below(256));
    if (random.below(4) == 0) changed.resize(random.below(changed.size()));
    const auto metadata = read_gguf_metadata(changed);
    if (!metadata.ok()) continue;
    const auto vocabulary = gguf_vocabulary(*metadata);
    if (!vocabulary.ok()) continue;
    const auto tokenizer = make_gguf_tokenizer(*vocabulary);
    if (tokenizer.ok()) made += (*tokenizer)->encode("a b").ok();
  }
  EXPECT_GT(made, 20);
}

class GgufVectors : public testing::TestWithParam<const char*> {};

TEST_P(GgufVectors, AllOfThem) {
  const auto path = kData / "tokenizers/gguf_vocab" /
                    (std::string("ggml-vocab-") + GetParam() + ".gguf");
  if (!std::filesystem::exists(path))
    GTEST_SKIP() << "needs " << path.filename() << " of the shared data";
  const std::string file = slurp(path);
  const auto metadata = read_gguf_metadata(file);
  ASSERT_TRUE(metadata.ok()) << metadata.status().message();
  const auto vocabulary = gguf_vocabulary(*metadata);
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status().message();
  const auto tokenizer = make_gguf_tokenizer(*vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  const std::string inputs = slurp(path.string() + ".inp"),
                    separator = "\n__ggml_vocab_test__\n";
  std::istringstream outputs(slurp(path.string() + ".out"));
  int count = 0;
  for (size_t at = 0; at <= inputs.size(); ++count) {
    const size_t end = std::min(inputs.find(separator, at), inputs.size());
    const std::string input = inputs.substr(at, end - at);
    std::string line;
    std::getline(outputs, line);
    std::vector<int32_t> expected;
    std::istringstream numbers(line);
    for (int32_t id; numbers >> id;) expected.push_back(id);
    const auto ids = (*tokenizer)->encode_without_special(input);
    ASSERT_TRUE(ids.ok()) << ids.status().message();
    EXPECT_EQ(*ids, expected) << input;
    at = end + separator.size();
  }
  EXPECT_EQ(count, 47);
}

INSTANTIATE_TEST_SUITE_P(Each, GgufVectors,
                         testing::Values("gpt-2", "llama-spm", "phi-3", "bert-bge"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace nibble
