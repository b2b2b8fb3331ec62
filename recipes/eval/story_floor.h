// The perplexity that no model can beat on text of the story grammar.
//
//   nll = -sum of log P(story) / predicted tokens;  perplexity = exp(nll)
//
// Exact: a tokenizer gives a story one sequence of tokens, so a model's product of token
// probabilities is at best P(story). Predicted tokens are those after the first, as
// evaluate_text counts them for lines that begin with BOS (and EOS, certain at the end,
// counts as a token of 0 nats where it is appended).
//
// invalid_argument: a line that the grammar cannot make (names it), no line, or a
// tokenizer that puts no BOS first (the first token would go unpredicted).
#pragma once

#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/tokenizer/tokenizer.h"

namespace nibble {

struct StoryFloor {
  double nll = 0, perplexity = 0;
  double nats_per_story = 0;
  int64_t tokens = 0;  // predicted
};
// Every line of at least 1 character is a story; limit 0: all.
Result<StoryFloor> story_floor(const std::vector<std::string>& lines,
                               const Tokenizer& tokenizer, bool append_eos,
                               int64_t limit);

}  // namespace nibble
