// nibble generate: text from a language model, as it is made.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <iostream>
#include <optional>

#include "kernels/base/cancel.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "kernels/runtime/sampler.h"
#include "kernels/tokenizer/stream_decoder.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/console.h"
#include "recipes/cli/verb.h"
#include "recipes/eval/model_data.h"
#include "recipes/eval/text_model.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// Prints what grows token by token: text, or without a tokenizer the ids.
class Stream {
 public:
  Stream(const Tokenizer* tokenizer, bool on) : on_(on) {
    if (tokenizer != nullptr) decoder_.emplace(*tokenizer);
  }
  void add(std::span<const int32_t> ids) {
    for (int32_t id : ids) print(decoder_ ? decoder_->push(id) : cat(id, " "));
  }
  void finish() {
    if (decoder_) print(decoder_->finish());
  }

 private:
  void print(const std::string& text) const {
    if (on_ && !text.empty()) std::cout << text << std::flush;
  }
  bool on_;
  std::optional<StreamDecoder> decoder_;
};

// "1,2,3" as token ids below `vocabulary`.
Result<std::vector<int32_t>> prompt_ids(const std::string& text, int64_t vocabulary) {
  std::vector<int32_t> ids;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    int32_t id = -1;
    const char* first = text.data() + at;
    while (first < text.data() + end && *first == ' ') ++first;
    const auto [last, failed] = std::from_chars(first, text.data() + end, id);
    if (failed != std::errc() || last != text.data() + end || id < 0 ||
        id >= vocabulary) {
      return error(StatusCode::invalid_argument,
                   "[generate] --prompt-ids: token ids from 0 to ", vocabulary - 1,
                   " with commas between are required; found \"",
                   text.substr(at, end - at), "\"; write them as 1,15,8");
    }
    ids.push_back(id);
    at = end + 1;
  }
  return ids;
}

// The ids of --prompt, --prompt-file or --prompt-ids.
Result<std::vector<int32_t>> read_prompt(const CommandLine& line,
                                         const Tokenizer* tokenizer, int64_t vocabulary) {
  const int given = line.has("prompt") + line.has("prompt-file") + line.has("prompt-ids");
  if (given != 1) {
    return error(StatusCode::invalid_argument,
                 "[generate] --prompt, --prompt-file, --prompt-ids: one of them is "
                 "required; found ",
                 given, "; give --prompt \"\" to start from nothing");
  }
  if (line.has("prompt-ids")) return prompt_ids(line.text("prompt-ids"), vocabulary);
  if (line.has("prompt")) return tokenizer->encode(line.text("prompt"));
  NIBBLE_ASSIGN_OR_RETURN(const Bytes file, map_file(line.path("prompt-file")));
  return tokenizer->encode(file.text());
}

struct Generated {
  std::vector<int32_t> ids;  // the prompt's first
  size_t prompt = 0;
  double seconds = 0;  // after the prompt
  std::string stopped;
};

Result<Generated> generate(TextModel& model, const std::vector<int32_t>& ends,
                           std::vector<int32_t> ids, int64_t tokens, Sampler sampler,
                           Stream& stream) {
  const Program& program = model.artifact().program;
  Generated result;
  result.prompt = ids.size();
  const int64_t room = program.context_length - static_cast<int64_t>(ids.size());
  NIBBLE_RETURN_IF_ERROR(
      model.open(static_cast<int64_t>(ids.size()) + std::min(tokens, room)));
  std::vector<float> logits(static_cast<size_t>(program.vocabulary));
  stream.add(ids);

  using Clock = std::chrono::steady_clock;
  Clock::time_point start = Clock::now();
  size_t done = 0;  // ids that the cache holds
  result.stopped = "the number of tokens";
  for (int64_t made = 0; made < tokens; ++made) {
    NIBBLE_RETURN_IF_ERROR(check_cancelled("generate"));
    const std::span<const int32_t> fresh = std::span<const int32_t>(ids).subspan(done);
    NIBBLE_RETURN_IF_ERROR(
        model.forward(fresh, MatrixView<float>(logits.data(), 1, program.vocabulary)));
    done = ids.size();
    if (made == 0) start = Clock::now();
    const int32_t next = sampler.next(logits);
    if (std::find(ends.begin(), ends.end(), next) != ends.end()) {
      result.stopped = "the model's end of text";
      break;
    }
    ids.push_back(next);
    stream.add(std::span<const int32_t>(&next, 1));
    if (static_cast<int64_t>(ids.size()) >= program.context_length) {
      result.stopped = "the model's context";
      break;
    }
  }
  result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  stream.finish();
  result.ids = std::move(ids);
  return result;
}

}  // namespace

Status run_generate_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "generate MODEL (--prompt TEXT | --prompt-file FILE | --prompt-ids 1,2,3) "
      "[--tokens N] [--seed N] [--greedy]",
      "Continues a text; it appears as it is made. The same seed gives the same text.");
  line.positional("MODEL");
  line.text("prompt", "TEXT", "what to continue; may be empty");
  line.text("prompt-file", "FILE", "a text file to continue");
  line.text("prompt-ids", "IDS",
            "token ids with commas between, taken as they are: no BOS is added");
  line.integer("tokens", "at most so many new tokens", 128, 1);
  line.integer("seed", "of the random choices", 1, 0);
  line.flag("greedy", "always the likeliest token");
  line.number("temperature", "below 1: closer to greedy", 0.8);
  line.number("top-p",
              "choose among the likeliest tokens with this much probability together",
              0.95);
  line.text("compute", kComputeNames,
            "activations of weight-only layers (default: float)");
  line.kv_option();
  line.device_option();
  line.model_options();
  line.json();
  line.example(
      "nibble generate recipes/examples/stories --prompt \"One day\" --tokens 60 --seed "
      "3",
      "a story; another seed tells another");
  line.example("nibble generate build/w4 --prompt \"One day\" --greedy --compute int8",
               "always the likeliest token, activations in INT8");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  const double temperature = line.has("greedy") ? 0 : line.number("temperature");
  const double top_p = line.number("top-p");
  if (!(temperature >= 0 && temperature <= 100) || !(top_p > 0 && top_p <= 1)) {
    return error(StatusCode::invalid_argument,
                 "[generate] --temperature, --top-p: 0 to 100 and above "
                 "0 to 1 required; found ",
                 temperature, " and ", top_p, "; use --greedy for 0");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Compute compute, compute_option(line));
  NIBBLE_ASSIGN_OR_RETURN(const std::string kv, kv_option(line));
  NIBBLE_ASSIGN_OR_RETURN(const std::shared_ptr<cuda::Runner> gpu,
                          device_option(line, "generate"));

  NIBBLE_ASSIGN_OR_RETURN(Artifact loaded,
                          load_model(line.path("MODEL"), line.load_options()));
  if (loaded.program.is_encoder()) {
    return error(StatusCode::invalid_argument, "[generate] ", line.text("MODEL"),
                 ": a language model is required; found ", loaded.program.architecture,
                 ", an encoder, which continues no text; use embed");
  }
  if (!loaded.program.is_language_model()) {
    return error(StatusCode::invalid_argument, "[generate] ", line.text("MODEL"),
                 ": a language model is required; found ", loaded.program.architecture,
                 "; use evaluate --dataset for image models");
  }
  std::unique_ptr<Tokenizer> tokenizer;  // not needed from ids to ids
  if (!line.has("prompt-ids") || !loaded.tokenizer.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(tokenizer, tokenizer_of(loaded));
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                          read_prompt(line, tokenizer.get(), loaded.program.vocabulary));
  const int64_t context = loaded.program.context_length;
  if (ids.empty() || static_cast<int64_t>(ids.size()) >= context) {
    return error(StatusCode::invalid_argument, "[generate] --prompt: 1 to ", context - 1,
                 " tokens are required; found ", ids.size(), "; make it ",
                 ids.empty() ? "longer" : "shorter");
  }
  const auto artifact = std::make_shared<const Artifact>(std::move(loaded));
  std::optional<Executor> executor;
  std::unique_ptr<TextModel> model;
  if (gpu != nullptr) {
    model = text_model(artifact, kv, gpu);
  } else {
    NIBBLE_ASSIGN_OR_RETURN(
        executor,
        Executor::create(artifact, ExecutorOptions{.compute = compute, .kv = kv}));
    model = text_model(*executor);
  }
  Stream stream(tokenizer.get(), !line.wants_json());
  Sampler sampler(static_cast<uint64_t>(line.integer("seed")),
                  static_cast<float>(temperature), static_cast<float>(top_p));
  NIBBLE_ASSIGN_OR_RETURN(
      const Generated result,
      generate(*model, tokenizer ? tokenizer->eos() : std::vector<int32_t>(),
               std::move(ids), line.integer("tokens"), sampler, stream));

  const size_t made = result.ids.size() - result.prompt;
  const double rate =
      made > 1 && result.seconds > 0 ? static_cast<double>(made - 1) / result.seconds : 0;
  if (line.wants_json()) {
    const Json json = {
        {"model", line.text("MODEL")},
        {"prompt", line.has("prompt") ? Json(line.text("prompt")) : Json()},
        {"text", tokenizer ? Json(tokenizer->decode(result.ids)) : Json()},
        {"prompt_ids",
         std::vector<int32_t>(
             result.ids.begin(),
             result.ids.begin() + static_cast<std::ptrdiff_t>(result.prompt))},
        {"ids", std::vector<int32_t>(
                    result.ids.begin() + static_cast<std::ptrdiff_t>(result.prompt),
                    result.ids.end())},
        {"stopped", result.stopped},
        {"tokens_per_second", rate}};
    std::cout << json.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
    return ok_status();
  }
  std::cout << "\n";
  note(cat(made, " tokens, ", number_text(rate, 4), " a second; ended by ",
           result.stopped));
  return ok_status();
}

}  // namespace nibble
