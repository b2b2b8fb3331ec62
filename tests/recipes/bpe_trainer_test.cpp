#include "recipes/data/bpe_trainer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <sstream>

#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "kernels/tokenizer/tokenizer.h"
#include "recipes/data/story_grammar.h"

namespace nibble {
namespace {

std::unique_ptr<Tokenizer> tokenizer_of(const std::string& json, int64_t vocabulary) {
  auto made = make_tokenizer(
      {{"tokenizer.json", Bytes::copy_of(json.data(), json.size())},
       {"tokenizer_config.json",
        Bytes::copy_of(bpe_tokenizer_config().data(), bpe_tokenizer_config().size())}},
      vocabulary);
  EXPECT_TRUE(made.ok()) << made.status().message();
  return std::move(made).value();
}

// "abab ab": pieces "abab" and " ab"; a-b is the only pair seen three times, then ab-ab
// and space-ab once each.
TEST(BpeTrainer, MergesTheMostFrequentPair) {
  const auto json = train_bpe({"abab ab", "abab"}, 260);
  ASSERT_TRUE(json.ok()) << json.status().message();
  const auto merges = parse_json_or_throw(*json)["model"]["merges"];
  ASSERT_EQ(merges.size(), 2u);
  EXPECT_EQ(merges[0], (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(merges[1], (std::vector<std::string>{"ab", "ab"}));
  const auto tokenizer = tokenizer_of(*json, 260);
  EXPECT_EQ(tokenizer->vocabulary(), 260);
  EXPECT_EQ(*tokenizer->encode("abab"), (std::vector<int32_t>{0, 259}));
  EXPECT_EQ(tokenizer->eos(), std::vector<int32_t>{1});
}

TEST(BpeTrainer, RefusesWhatTheTextCannotGive) {
  EXPECT_EQ(train_bpe({"abab"}, 257).status().message(),
            "[bpe] vocabulary: at least 258 (256 bytes, BOS and EOS) was required; found "
            "257; raise it");
  EXPECT_EQ(train_bpe({"abab ab", "abab"}, 300).status().message(),
            "[bpe] vocabulary: text with enough repeated pairs for 300 ids was required; "
            "it has 260; give "
            "more text or a smaller vocabulary");
}

// The shipped tokenizer is what its README says: 20,000 stories of seed 1, 896 ids.
TEST(BpeTrainer, ReproducesTheShippedTokenizer) {
  std::vector<std::string> stories;
  for (uint64_t i = 0; i < 20000; ++i) stories.push_back(make_story(1, i).text);
  const auto json = train_bpe(stories, 896);
  ASSERT_TRUE(json.ok()) << json.status().message();
  const auto folder =
      std::filesystem::path(NIBBLE_SOURCE_DIR) / "recipes/examples/stories";
  EXPECT_EQ(*json, *read_text_file(folder / "tokenizer.json"));
  EXPECT_EQ(bpe_tokenizer_config(), *read_text_file(folder / "tokenizer_config.json"));

  const auto tokenizer = tokenizer_of(*json, 896);
  int64_t tokens = 0;
  size_t longest = 0;
  for (uint64_t i = 0; i < 500; ++i) {
    const std::string text = make_story(2, i).text;
    const auto ids = tokenizer->encode(text);
    EXPECT_EQ(ids->front(), 0);
    EXPECT_EQ(tokenizer->decode(*ids), text);
    tokens += static_cast<int64_t>(ids->size());
    longest = std::max(longest, ids->size());
  }
  EXPECT_LT(longest, 200u);  // inside the shipped model's context of 256, EOS included
  EXPECT_GT(tokens / 500, 100);
  EXPECT_LT(tokens / 500, 120);
}

}  // namespace
}  // namespace nibble
