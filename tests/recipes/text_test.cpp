#include "recipes/data/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "kernels/artifact/safetensors.h"

namespace nibble {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Ids = std::vector<int32_t>;

// One id a byte: 10 + byte. With or without BOS 1; EOS 2.
class ByteTokenizer final : public Tokenizer {
 public:
  explicit ByteTokenizer(bool has_bos) : has_bos_(has_bos) {}
  Result<Ids> encode(std::string_view text) const override {
    Ids ids = has_bos_ ? Ids{1} : Ids{};
    for (char c : text) ids.push_back(10 + static_cast<uint8_t>(c));
    return ids;
  }
  Result<Ids> encode_without_special(std::string_view text) const override {
    Ids ids;
    for (char c : text) ids.push_back(10 + static_cast<uint8_t>(c));
    return ids;
  }
  std::string decode(std::span<const int32_t>) const override { return ""; }
  int64_t vocabulary() const override { return 266; }
  int32_t bos() const override { return has_bos_ ? 1 : -1; }
  std::vector<int32_t> eos() const override { return has_bos_ ? Ids{2} : Ids{}; }

 private:
  bool has_bos_;
};

class Text : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              cat("nibble_text_",
                  testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path write(const std::string& text) {
    std::ofstream(folder_ / "t.txt", std::ios::binary) << text;
    return folder_ / "t.txt";
  }
  std::filesystem::path write_ids(std::vector<int64_t> shape, const Ids& ids) {
    EXPECT_TRUE(write_safetensors(
                    folder_ / "t.safetensors",
                    {{"input_ids", make_tensor(std::move(shape), std::span(ids))}}, {})
                    .ok());
    return folder_ / "t.safetensors";
  }
  std::filesystem::path folder_;
};

int32_t id(char c) { return 10 + c; }

TEST_F(Text, WindowsBeginWithBos) {
  const auto path = write("abcdefg");
  const ByteTokenizer with(true), without(false);
  auto data = load_text(path, &with, 266, {.length = 4});
  ASSERT_TRUE(data.ok()) << data.status().message();
  EXPECT_THAT(data->sequences,
              ElementsAre(Ids{1, id('a'), id('b'), id('c')},
                          Ids{1, id('d'), id('e'), id('f')}, Ids{1, id('g')}));
  // Without BOS the last window has one token, nothing to predict: it is left out.
  data = load_text(path, &without, 266, {.length = 3});
  EXPECT_THAT(data->sequences, ElementsAre(Ids{id('a'), id('b'), id('c')},
                                           Ids{id('d'), id('e'), id('f')}));
  EXPECT_THAT(
      data->description,
      HasSubstr("t.txt, 2 sequences, 6 tokens, sha256 "
                "7d1a54127b222502f5b79b5fb0803061152a44f92b37e23c6527baf665d4da9a"));
  data = load_text(path, &without, 266, {.length = 3, .limit = 1});
  EXPECT_EQ(data->sequences.size(), 1u);
}

// What overlaps is counted by the first window that holds it: every token but the very
// first without BOS is predicted once.
TEST_F(Text, WindowsMayOverlap) {
  const auto path = write("abcdefg");
  const ByteTokenizer with(true), without(false);
  auto data = load_text(path, &without, 266, {.length = 4, .stride = 2});
  ASSERT_TRUE(data.ok()) << data.status().message();
  EXPECT_THAT(data->sequences, ElementsAre(Ids{id('a'), id('b'), id('c'), id('d')},
                                           Ids{id('c'), id('d'), id('e'), id('f')},
                                           Ids{id('e'), id('f'), id('g')}));
  EXPECT_THAT(data->counted_from, ElementsAre(1, 2, 2));
  data = load_text(path, &with, 266, {.length = 4, .stride = 2});
  ASSERT_TRUE(data.ok()) << data.status().message();
  EXPECT_THAT(data->sequences, ElementsAre(Ids{1, id('a'), id('b'), id('c')},
                                           Ids{1, id('c'), id('d'), id('e')},
                                           Ids{1, id('e'), id('f'), id('g')}));
  EXPECT_THAT(data->counted_from, ElementsAre(1, 2, 2));
  // A stride of the whole window overlaps nothing.
  data = load_text(path, &with, 266, {.length = 4, .stride = 3});
  EXPECT_THAT(data->counted_from, ElementsAre(1, 1, 1));
  EXPECT_TRUE(load_text(path, &with, 266, {.length = 4})->counted_from.empty());
  for (int64_t stride = 1; stride <= 4; ++stride) {
    data = load_text(path, &without, 266, {.length = 4, .stride = stride});
    ASSERT_TRUE(data.ok());
    int64_t counted = 0;
    for (size_t s = 0; s < data->sequences.size(); ++s)
      counted += static_cast<int64_t>(data->sequences[s].size()) - data->counted_from[s];
    EXPECT_EQ(counted, stride == 4 ? 5 : 6) << stride;  // at 4 "e" begins a window
  }
  // Rows of ids are cut into windows too.
  data = load_text(write_ids({1, 5}, {5, 6, 7, 8, 9}), nullptr, 10,
                   {.length = 3, .stride = 1});
  EXPECT_THAT(data->sequences, ElementsAre(Ids{5, 6, 7}, Ids{6, 7, 8}, Ids{7, 8, 9}));
  EXPECT_THAT(data->counted_from, ElementsAre(1, 2, 2));
  EXPECT_THAT(
      load_text(path, &with, 266, {.length = 4, .stride = 4}).status().message(),
      HasSubstr("a stride of 1 to 3 tokens (the window without BOS) was required; "
                "found 4; lower --stride"));
  EXPECT_THAT(load_text(path, &with, 266, {.length = 4, .per_line = true, .stride = 2})
                  .status()
                  .message(),
              HasSubstr("windows were required for a stride; found lines"));
}

TEST_F(Text, LinesAlone) {
  const auto path = write(" ab\t \r\n\n\u00e9\u00e9\nxyz\nlast");
  const ByteTokenizer tokenizer(true);
  auto data = load_text(path, &tokenizer, 266, {.length = 4, .per_line = true});
  EXPECT_EQ(data->sequences.size(), 4u);
  EXPECT_EQ(data->sequences[0], (Ids{1, id('a'), id('b')}));
  EXPECT_EQ(data->sequences[3], (Ids{1, id('l'), id('a'), id('s')}));  // cut
  data =
      load_text(path, &tokenizer, 266, {.length = 8, .per_line = true, .min_chars = 3});
  EXPECT_EQ(data->sequences.size(), 2u);  // two characters of two bytes each are too few
  data = load_text(path, &tokenizer, 266,
                   {.length = 5, .per_line = true, .append_eos = true});
  EXPECT_EQ(data->sequences[0], (Ids{1, id('a'), id('b'), 2}));
  EXPECT_EQ(data->sequences[2], (Ids{1, id('x'), id('y'), id('z'), 2}));
  EXPECT_EQ(data->sequences[3].size(), 5u);
  EXPECT_NE(data->sequences[3].back(), 2);  // a line that was cut has not ended
  EXPECT_EQ(*read_text_lines(path),
            (std::vector<std::string>{"ab", "", "\u00e9\u00e9", "xyz", "last"}));
}

TEST_F(Text, IdsOfSafetensors) {
  auto data = load_text(write_ids({3, 3}, {5, 6, 7, 8, 9, -1, 4, -1, -1}), nullptr, 10,
                        {.length = 512});
  ASSERT_TRUE(data.ok()) << data.status().message();
  EXPECT_THAT(data->sequences, ElementsAre(Ids{5, 6, 7}, Ids{8, 9}));
  data = load_text(write_ids({1, 3}, {5, 6, 7}), nullptr, 10, {.length = 2});
  EXPECT_THAT(data->sequences, ElementsAre(Ids{5, 6}));
}

TEST_F(Text, SavedSequencesReadBack) {
  const std::vector<Ids> sequences = {{5, 6, 7}, {8, 9}, {3, 0, 4, 1}};
  const auto path = folder_ / "saved.safetensors";
  std::filesystem::remove(path);
  ASSERT_TRUE(save_token_sequences(path, sequences, false).ok());
  const auto back = load_text(path, nullptr, 10, {.length = 16});
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(back->sequences, sequences);
  const Status twice = save_token_sequences(path, sequences, false);
  EXPECT_EQ(twice.code(), StatusCode::already_exists);
  EXPECT_TRUE(save_token_sequences(path, {{1, 2}}, true).ok());
  EXPECT_EQ(save_token_sequences(folder_ / "none.safetensors", {}, false).code(),
            StatusCode::invalid_argument);
}

TEST_F(Text, Errors) {
  const ByteTokenizer tokenizer(true), without(false);
  const auto message = [](const Result<TextData>& data, StatusCode code) {
    EXPECT_EQ(data.status().code(), code);
    return data.status().message();
  };
  EXPECT_EQ(message(load_text(write_ids({2, 2}, {1, 2, 3, 10}), nullptr, 10, {}),
                    StatusCode::out_of_range),
            cat("[text] ", (folder_ / "t.safetensors").string(),
                " input_ids row 1 column 1: an id below 10 (the model's vocabulary) was "
                "required; found 10; "
                "these are another tokenizer's ids"));
  EXPECT_THAT(
      message(load_text(write_ids({1, 3}, {1, -1, 3}), nullptr, 10, {}),
              StatusCode::data_loss),
      HasSubstr(
          "row 0: padding (-1) only at the end was required; found id 3 in column 2"));
  EXPECT_THAT(message(load_text(write_ids({3}, {1, 2, 3}), nullptr, 10, {}),
                      StatusCode::data_loss),
              HasSubstr("input_ids [sequences, length] was required; found [3]"));
  EXPECT_THAT(
      message(load_text(write("ab\xff"), &tokenizer, 266, {}), StatusCode::data_loss),
      HasSubstr("UTF-8 text was required; byte 2 is not part of UTF-8"));
  EXPECT_THAT(
      message(load_text(write(""), &tokenizer, 266, {}), StatusCode::invalid_argument),
      HasSubstr("at least one sequence of 2 tokens was required; found none"));
  EXPECT_THAT(
      message(load_text(write("ab"), nullptr, 266, {}), StatusCode::invalid_argument),
      HasSubstr("a tokenizer was required for text"));
  EXPECT_THAT(message(load_text(write("ab"), &tokenizer, 266, {.length = 1}),
                      StatusCode::invalid_argument),
              HasSubstr("at least 2 tokens"));
  EXPECT_THAT(message(load_text(write("ab"), &without, 266,
                                {.per_line = true, .append_eos = true}),
                      StatusCode::invalid_argument),
              HasSubstr("found a tokenizer without one"));
  EXPECT_EQ(load_text(folder_ / "absent.txt", &tokenizer, 266, {}).status().code(),
            StatusCode::not_found);
}

}  // namespace
}  // namespace nibble
