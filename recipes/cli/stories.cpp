// nibble stories: text of the story grammar, a tokenizer trained on it, and its true
// floor.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>

#include "kernels/base/cancel.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/console.h"
#include "recipes/cli/verb.h"
#include "recipes/data/bpe_trainer.h"
#include "recipes/data/story_grammar.h"
#include "recipes/eval/story_floor.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr size_t kTokenizerStories =
    20000;  // more would not change the merges of a small grammar

Status refuse_existing(const std::filesystem::path& path, bool overwrite) {
  std::error_code ignored;
  if (path.empty() || overwrite || !std::filesystem::exists(path, ignored))
    return ok_status();
  return error(StatusCode::already_exists, "[stories] ", path.string(),
               ": a new file is required; found one; choose another or give --overwrite");
}

// tokenizer.json, and tokenizer_config.json beside it: what a model directory needs.
Status write_tokenizer(const std::filesystem::path& path,
                       const std::vector<std::string>& lines, int64_t vocabulary) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string json, train_bpe(lines, vocabulary));
  NIBBLE_RETURN_IF_ERROR(write_file_atomically(path, json));
  return write_file_atomically(path.parent_path() / "tokenizer_config.json",
                               bpe_tokenizer_config());
}

// The floor in a tokenizer's tokens: what evaluate --per-line is to be set beside.
Result<StoryFloor> floor_of(const std::filesystem::path& path,
                            const std::vector<std::string>& lines, bool append_eos) {
  std::map<std::string, Bytes> files;
  NIBBLE_ASSIGN_OR_RETURN(files["tokenizer.json"], map_file(path));
  const std::filesystem::path config = path.parent_path() / "tokenizer_config.json";
  std::error_code ignored;
  if (std::filesystem::exists(config, ignored)) {
    NIBBLE_ASSIGN_OR_RETURN(files["tokenizer_config.json"], map_file(config));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                          make_tokenizer(files, std::numeric_limits<int32_t>::max()));
  return story_floor(lines, *tokenizer, append_eos, 0);
}

}  // namespace

Status run_stories_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "stories --count N [--seed N] [--output FILE] [--tokenizer-out FILE --vocabulary "
      "N]",
      "Writes short stories, one a line, from a grammar whose exact probabilities are "
      "known. Prints the entropy\nof what it wrote: no model can have a lower loss on "
      "it, other than by luck.");
  line.integer("seed", "stories of another seed are other stories", 1, 0);
  line.integer("first", "index of the first story", 0, 0);
  line.integer("count", "stories to write", 1000, 1);
  line.text("output", "FILE", "where to (default: stdout)");
  line.text("tokenizer-out", "FILE",
            "train a byte-level BPE tokenizer.json on the stories");
  line.integer("vocabulary", "ids of that tokenizer", 1024, 258);
  line.text("tokenizer", "FILE",
            "a tokenizer.json: print the floor of perplexity in its tokens");
  line.flag("append-eos", "with --tokenizer: count an EOS after each story");
  line.flag("overwrite", "replace the files if they are there");
  line.json();
  line.example(
      "nibble stories --count 2000 --output build/train.txt",
      "training text");
  line.example(
      "nibble stories --seed 2 --count 50 --tokenizer recipes/examples/stories/tokenizer.json --output build/heldout.txt",
      "held-out text, and the lowest perplexity it allows");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  const std::filesystem::path output = line.path("output"),
                              tokenizer = line.path("tokenizer-out");
  NIBBLE_RETURN_IF_ERROR(refuse_existing(output, line.has("overwrite")));
  NIBBLE_RETURN_IF_ERROR(refuse_existing(tokenizer, line.has("overwrite")));

  const uint64_t seed = static_cast<uint64_t>(line.integer("seed"));
  const int64_t first = line.integer("first"), count = line.integer("count");
  std::string text;
  std::vector<std::string> lines;
  double nats = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (i % 1024 == 0) NIBBLE_RETURN_IF_ERROR(check_cancelled("stories"));
    Story story = make_story(seed, static_cast<uint64_t>(first + i));
    nats -= story.log_probability;
    text += story.text + "\n";
    lines.push_back(std::move(story.text));
  }
  if (!output.empty()) NIBBLE_RETURN_IF_ERROR(write_file_atomically(output, text));
  std::optional<StoryFloor> floor;
  if (line.has("tokenizer")) {
    NIBBLE_ASSIGN_OR_RETURN(
        floor, floor_of(line.path("tokenizer"), lines, line.has("append-eos")));
  }
  if (!tokenizer.empty()) {
    const size_t enough = std::min(lines.size(), kTokenizerStories);
    NIBBLE_RETURN_IF_ERROR(write_tokenizer(
        tokenizer, {lines.begin(), lines.begin() + static_cast<std::ptrdiff_t>(enough)},
        line.integer("vocabulary")));
  }

  const double each = nats / static_cast<double>(count);
  const double per_byte = nats / static_cast<double>(text.size());
  if (line.wants_json()) {
    Json json = {{"seed", seed},
                 {"first", first},
                 {"count", count},
                 {"bytes", text.size()},
                 {"entropy_nats", nats},
                 {"entropy_nats_per_story", each},
                 {"entropy_bits_per_byte", per_byte / std::log(2.0)},
                 {"output", output.string()},
                 {"tokenizer", tokenizer.string()}};
    if (floor) {
      json["floor_perplexity"] = floor->perplexity;
      json["floor_nll"] = floor->nll;
      json["tokens"] = floor->tokens;
    }
    std::cout << json.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
    return ok_status();
  }
  if (output.empty()) std::cout << text;
  note(cat(count, " stories of seed ", seed, ", ",
           bytes_text(static_cast<int64_t>(text.size())), "; entropy floor ",
           number_text(nats, 10), " nats in all, ", number_text(each, 6), " a story, ",
           number_text(per_byte / std::log(2.0), 5), " bits a byte"));
  if (floor) {
    note(cat("on average over such texts, no model has a perplexity below ",
             number_text(floor->perplexity, 6), " (", floor->tokens, " predictions)"));
  }
  return ok_status();
}

}  // namespace nibble
