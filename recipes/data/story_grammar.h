// A seeded grammar of short stories, made for language models small enough to ship:
// names, objects, counts and long-range agreement. Unambiguous: each story's exact
// log-probability under the grammar is known, so a model's perplexity can be set beside
// its true floor.
//
//   log P(story) = sum over its choices of log(weight of the option / weights of all
//   allowed)
//
// An option's words are written the moment it is chosen, and no option of a choice begins
// with the whole words of another; so two derivations differ in the text where they first
// differ, and a reader that follows the text finds the one derivation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

struct Story {
  std::string text;            // one line, no newline
  double log_probability = 0;  // natural log, of this text under the grammar
};
// The index-th story of a seed: the same on every machine.
Story make_story(uint64_t seed, uint64_t index);
// log P(text); -infinity when the grammar cannot make it. Parses, and so checks, the
// text.
double story_log_probability(const std::string& text);

// Every list of options that `stories` stories of seed 1 choose from: what a test needs
// to see that none is a prefix of another.
std::vector<std::vector<std::string>> story_choices(uint64_t stories);

}  // namespace nibble
