#include "recipes/data/story_grammar.h"

#include <gtest/gtest.h>

#include <cctype>
#include <cmath>
#include <set>
#include <sstream>

namespace nibble {
namespace {

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string word; in >> word;) {
    std::string letters;
    for (char c : word)
      if (std::isalpha(static_cast<unsigned char>(c)))
        letters += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    out.push_back(letters);
  }
  return out;
}

TEST(StoryGrammar, ReaderAgreesWithWriterExactly) {
  std::set<std::string> texts;
  for (uint64_t i = 0; i < 1000; ++i) {
    const Story story = make_story(7, i);
    EXPECT_EQ(story_log_probability(story.text), story.log_probability) << story.text;
    EXPECT_EQ(make_story(7, i).text, story.text);
    texts.insert(story.text);
  }
  EXPECT_GT(texts.size(), 995u);
  EXPECT_NE(make_story(7, 0).text, make_story(8, 0).text);
}

TEST(StoryGrammar, CorruptedStoriesAreImpossible) {
  const double impossible = -std::numeric_limits<double>::infinity();
  EXPECT_EQ(story_log_probability(""), impossible);
  EXPECT_EQ(story_log_probability("Once upon a time"), impossible);
  for (uint64_t i = 0; i < 200; ++i) {
    const std::string text = make_story(3, i).text;
    EXPECT_EQ(story_log_probability(text + " The end."), impossible);
    EXPECT_EQ(story_log_probability(text.substr(0, text.size() - 1)), impossible);
    EXPECT_EQ(story_log_probability(" " + text), impossible);
    // Any one letter changed: most places are fixed by the grammar or by an earlier
    // choice; a letter that makes another word of the grammar would break a later
    // agreement.
    const size_t at = (i * 37) % text.size();
    std::string changed = text;
    changed[at] = changed[at] == 'q' ? 'z' : 'q';
    EXPECT_EQ(story_log_probability(changed), impossible) << changed;
  }
}

// The words that must return: breaking the agreement makes the story impossible.
TEST(StoryGrammar, AgreementIsPartOfTheGrammar) {
  int sums = 0;
  for (uint64_t i = 0; i < 400; ++i) {
    const std::string text = make_story(5, i).text;
    const size_t counted = text.find("They counted ");
    if (counted == std::string::npos) continue;
    ++sums;
    const size_t begin = counted + 13, end = text.find(' ', begin);
    for (const char* wrong :
         {"four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"}) {
      if (text.substr(begin, end - begin) == wrong) continue;
      EXPECT_EQ(story_log_probability(text.substr(0, begin) + wrong + text.substr(end)),
                -std::numeric_limits<double>::infinity());
    }
  }
  EXPECT_GT(sums, 20);
}

// Two derivations differ first at some choice; if no option there begins with the whole
// words of another, their texts differ too: the grammar is unambiguous.
TEST(StoryGrammar, NoOptionBeginsWithAnother) {
  const auto choices = story_choices(5000);
  EXPECT_GT(choices.size(), 25u);
  for (const auto& options : choices)
    for (const auto& a : options)
      for (const auto& b : options)
        if (&a != &b) {
          EXPECT_NE((b + " ").rfind(a + " ", 0), 0u) << a << " | " << b;
        }
}

TEST(StoryGrammar, SizeAndEntropy) {
  std::set<std::string> vocabulary;
  double nats = 0;
  constexpr int kStories = 4000;
  for (uint64_t i = 0; i < kStories; ++i) {
    const Story story = make_story(1, i);
    nats -= story.log_probability;
    const auto w = words(story.text);
    EXPECT_GE(w.size(), 40u);
    EXPECT_LE(w.size(), 115u);
    vocabulary.insert(w.begin(), w.end());
    for (unsigned char c : story.text) EXPECT_TRUE(c >= ' ' && c < 127);
  }
  EXPECT_LT(vocabulary.size(), 400u);
  EXPECT_GT(vocabulary.size(), 200u);
  EXPECT_GT(nats / kStories, 25);
  EXPECT_LT(nats / kStories, 45);
}

// The weights are what is drawn: a hero is a girl with probability 6 / 22, and then Lily
// with 4 / 26.
TEST(StoryGrammar, FrequenciesFollowTheProbabilities) {
  constexpr int kStories = 20000;
  int girls = 0, lilies = 0;
  for (uint64_t i = 0; i < kStories; ++i) {
    const std::string text = make_story(11, i).text;
    const size_t at = text.find(" named ");
    if (text.compare(at - 5, 5, " girl") != 0) continue;
    ++girls;
    lilies += text.compare(at + 7, 5, "Lily.") == 0;
  }
  const double p = 6.0 / 22, q = 4.0 / 26;
  EXPECT_NEAR(girls / double(kStories), p, 4 * std::sqrt(p * (1 - p) / kStories));
  EXPECT_NEAR(lilies / double(girls), q, 4 * std::sqrt(q * (1 - q) / girls));
}

TEST(StoryGrammar, TheSameOnEveryMachine) {
  const Story story = make_story(1, 0);
  EXPECT_EQ(story.text,
            "Once upon a time, in a small town, there lived a brave dog named Tom. He "
            "loved to paint. "
            "His best friend was a girl named Zoe. One warm day, Tom and Zoe rode to the "
            "park. That "
            "day Tom had a green kite and Zoe had a yellow drum. They played and then "
            "traded. Now Zoe "
            "had the green kite and Tom had the yellow drum. Zoe was proud. They never "
            "forgot that "
            "warm day at the park. At night Tom was too tired to paint.");
  EXPECT_NEAR(story.log_probability, -37.49, 0.005);
}

}  // namespace
}  // namespace nibble
