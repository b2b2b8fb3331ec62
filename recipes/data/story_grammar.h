// A seeded grammar of short stories, made for language models small enough to ship: names,
// objects, counts and long-range agreement. Unambiguous: each story's exact log-probability
// under the grammar is known, so a model's perplexity can be set beside its true floor.
#pragma once

#include <cstdint>
#include <string>

namespace nibble {

struct Story {
  std::string text;            // one line, no newline
  double log_probability = 0;  // natural log, of this text under the grammar
};
// The index-th story of a seed: the same on every machine.
Story make_story(uint64_t seed, uint64_t index);
// log P(text); -infinity when the grammar cannot make it. Parses, and so checks, the text.
double story_log_probability(const std::string& text);

}  // namespace nibble
