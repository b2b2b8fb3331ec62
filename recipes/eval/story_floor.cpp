#include "recipes/eval/story_floor.h"

#include <cmath>

#include "recipes/data/story_grammar.h"

namespace nibble {

Result<StoryFloor> story_floor(const std::vector<std::string>& lines,
                               const Tokenizer& tokenizer, bool append_eos,
                               int64_t limit) {
  if (tokenizer.bos() < 0)
    return error(StatusCode::invalid_argument,
                 "[story floor] tokenizer: one that puts BOS first was required; this "
                 "one does not; "
                 "the first token of a story would go unpredicted");
  StoryFloor floor;
  double nats = 0;
  int64_t stories = 0;
  for (size_t i = 0; i < lines.size() && (limit == 0 || stories < limit); ++i) {
    if (lines[i].empty()) continue;
    const double log_probability = story_log_probability(lines[i]);
    if (std::isinf(log_probability))
      return error(StatusCode::invalid_argument, "[story floor] line ", i + 1,
                   ": a story of the grammar was required; the grammar cannot make \"",
                   lines[i].substr(0, 40), lines[i].size() > 40 ? "..." : "",
                   "\"; the floor is known for stories only");
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.encode(lines[i]));
    nats -= log_probability;
    floor.tokens += static_cast<int64_t>(ids.size()) - 1 + (append_eos ? 1 : 0);
    ++stories;
  }
  if (stories == 0)
    return error(
        StatusCode::invalid_argument,
        "[story floor] lines: at least one story was required; found none; give stories");
  floor.nll = nats / static_cast<double>(floor.tokens);
  floor.perplexity = std::exp(floor.nll);
  floor.nats_per_story = nats / static_cast<double>(stories);
  return floor;
}

}  // namespace nibble
