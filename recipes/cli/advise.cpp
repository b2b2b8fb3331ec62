// nibble advise: which schemes pay for a model on this machine, before any work is done.
#include "recipes/eval/advise.h"

#include <iostream>

#include "kernels/base/json.h"
#include "kernels/cuda/memory.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/console.h"
#include "recipes/cli/verb.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// What this machine's GPU says to w4a4; "" where there is none.
std::string gpu_note() {
  const Result<cuda::DeviceInfo> device = cuda::device_info();
  if (!device.ok()) return "";
  return cat("; ", device->name, " (compute capability ", device->major, ".",
             device->minor, ") ",
             cuda::has_int4_products(*device)
                 ? "multiplies 4-bit numbers"
                 : "has no 4-bit products either: its tensor cores take int8 and FP8");
}

// Tokens a second of a step.
double decode_rate(const Advice& advice, const AdviseOptions& options) {
  return static_cast<double>(options.batch) / advice.decode_seconds;
}

bool fits(const Advice& advice, double budget_ms, int64_t budget_mb) {
  return (budget_ms <= 0 || advice.decode_seconds * 1e3 <= budget_ms) &&
         (budget_mb <= 0 ||
          advice.weight_bytes + advice.cache_bytes <= budget_mb * 1'000'000);
}

struct Line {
  const Advice* advice;
  bool fits;
  std::optional<MeasuredAdvice> measured;
};

Json to_json(const AdviceReport& report, const std::vector<Line>& lines,
             const AdviseOptions& options) {
  Json json = {{"cpu", report.cpu},
               {"read_bandwidth", report.read_bandwidth},
               {"batch", options.batch},
               {"known_timings", options.timings == nullptr ? 0 : options.timings->found()},
               {"context", options.context},
               {"prompt_tokens", options.prefill},
               {"rest_seconds", {{"decode", report.rest_decode},
                                 {"prompt", report.rest_prefill}}},
               {"advice", Json::array()}};
  for (const Line& line : lines) {
    const Advice& advice = *line.advice;
    Json entry = {{"name", advice.name},
                  {"command", advice.command},
                  {"decode_tokens_per_second", decode_rate(advice, options)},
                  {"time_to_first_token", advice.prefill_seconds},
                  {"weight_bytes", advice.weight_bytes},
                  {"kv_cache_bytes", advice.cache_bytes},
                  {"weight_error", advice.error},
                  {"pays", advice.verdict.empty()},
                  {"verdict", advice.verdict},
                  {"fits", line.fits},
                  {"layers", Json::array()}};
    for (const AdvisedKind& kind : advice.kinds) {
      entry["layers"].push_back({{"scheme", kind.scheme},
                                 {"kernel", kind.kernel},
                                 {"shape", {kind.rows, kind.cols}},
                                 {"layers", kind.layers},
                                 {"bytes", kind.bytes},
                                 {"decode_seconds", kind.decode_seconds},
                                 {"prompt_seconds", kind.prefill_seconds},
                                 {"decode_bound_by", kind.decode_by_memory ? "memory" : "compute"},
                                 {"prompt_bound_by", kind.prefill_by_memory ? "memory" : "compute"},
                                 {"falls_back", kind.falls_back}});
    }
    if (line.measured) {
      entry["measured_decode_tokens_per_second"] =
          static_cast<double>(options.batch) / line.measured->decode_seconds;
      entry["measured_time_to_first_token"] = line.measured->prefill_seconds;
    }
    json["advice"].push_back(std::move(entry));
  }
  return json;
}

void print(const AdviceReport& report, const std::vector<Line>& lines,
           const AdviseOptions& options, const TimingCache& timings) {
  std::vector<std::vector<std::string>> rows = {
      {"scheme", "decode tokens/s", "first token ms", "weights", "KV cache", "RTN error",
       "measured", "verdict"}};
  for (const Line& line : lines) {
    const Advice& advice = *line.advice;
    rows.push_back(
        {advice.name, number_text(decode_rate(advice, options), 4),
         number_text(advice.prefill_seconds * 1e3, 4), bytes_text(advice.weight_bytes),
         bytes_text(advice.cache_bytes),
         advice.error > 0 ? cat(number_text(advice.error * 100, 3), " %") : "-",
         line.measured
             ? cat(number_text(static_cast<double>(options.batch) /
                                   line.measured->decode_seconds, 4), " tokens/s, ",
                   number_text(line.measured->prefill_seconds * 1e3, 4), " ms")
             : "-",
         !line.fits ? "over the budget"
         : advice.verdict.empty() ? "pays"
                                  : advice.verdict});
  }
  std::cout
      << table_text(rows) << "on  " << report.cpu << ", reading "
      << number_text(report.read_bandwidth / 1e9, 3) << " GB/s; " << options.batch
      << (options.batch == 1 ? " sequence" : " sequences") << " with " << options.context
      << " positions in the cache, a prompt of "
      << options.prefill << " tokens\n"
      << "loses  w4a4 (w4a4-rotated, w4a4-qat): emulated here: no CPU multiplies 4-bit numbers, "
         "so that inputs\n       are rounded first and then multiplied as floats, slower than w4a16"
      << gpu_note() << "\n";
  if (timings.found() > 0) {
    std::cout << "known  " << timings.found() << " timings of layers, from "
              << timings.file().string() << "; --fresh times them again\n";
  }
  const auto best = std::find_if(lines.begin(), lines.end(), [](const Line& line) {
    return line.fits && line.advice->verdict.empty();
  });
  if (best == lines.end()) return;
  const Advice& advice = *best->advice;
  std::cout << "\nfastest  " << advice.name
            << (advice.command.empty() ? "" : "  (" + advice.command + ")") << "\n\n";
  std::vector<std::vector<std::string>> kinds = {
      {"layers", "scheme, shape", "kernel", "decode us", "of the step", "bound by",
       "prompt bound by"}};
  for (const AdvisedKind& kind : advice.kinds) {
    kinds.push_back({cat(kind.layers), cat(kind.scheme, " [", kind.rows, ", ", kind.cols, "]"),
                     kind.kernel, number_text(kind.decode_seconds * 1e6, 3),
                     cat(number_text(100 * static_cast<double>(kind.layers) *
                                         kind.decode_seconds / advice.decode_seconds, 2),
                         " %"),
                     kind.decode_by_memory ? "memory" : "compute",
                     kind.prefill_by_memory ? "memory" : "compute"});
  }
  kinds.push_back({"-", "attention, norms, cache", "-",
                   number_text(report.rest_decode * 1e6, 3),
                   cat(number_text(100 * report.rest_decode / advice.decode_seconds, 2), " %"),
                   "-", "-"});
  std::cout << table_text(kinds);
}

}  // namespace

Status run_advise_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "advise MODEL",
      "Which schemes pay for this model on this machine: decode and prompt speed predicted from "
      "kernels\ntimed at the model's own layer shapes, memory, the rounding error, what binds "
      "each layer, and the\nschemes that lose, with the reason. Takes seconds to a minute, less "
      "once this build has timed the\nlayers: their timings are kept in $XDG_CACHE_HOME/nibble "
      "or ~/.cache/nibble, a file a CPU.");
  line.positional("MODEL");
  line.integer("batch", "sequences decoded together", 1, 1);
  line.integer("context", "positions in the cache, at most the model's context", 512, 1);
  line.integer("prompt", "tokens of the prompt, at most the model's context", 256, 1);
  line.number("budget-ms", "a decode step may take this long; 0: any", 0);
  line.integer("budget-mb", "weights and cache may take this; 0: any", 0, 0);
  line.flag("measure", "quantize with the fastest one, in memory, and print what it really does");
  line.flag("measure-all", "the same with every one");
  line.flag("fresh", "time every layer again, and keep nothing of it");
  line.kv_option();
  line.model_options();
  line.json();
  line.example("nibble advise recipes/examples/stories", "what pays for the model that ships");
  line.example("nibble advise recipes/examples/stories --batch 8 --budget-mb 8 --measure --json",
               "eight sequences at once in 8 MB, the prediction beside the truth");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  NIBBLE_ASSIGN_OR_RETURN(const std::string kv, kv_option(line));
  NIBBLE_ASSIGN_OR_RETURN(Artifact loaded,
                          load_model(line.path("MODEL"), line.load_options()));
  const auto model = std::make_shared<const Artifact>(std::move(loaded));
  AdviseOptions options{.batch = line.integer("batch"),
                        .context = line.integer("context"),
                        .prefill = line.integer("prompt"),
                        .kv = kv};
  if (model->program.is_language_model() && !model->program.is_encoder()) {
    const int64_t most = model->program.context_length;
    options.context = std::min(options.context, most - 1);
    options.prefill = std::min(options.prefill, most);
  }
  TimingCache timings(cache_directory());
  if (!line.has("fresh")) options.timings = &timings;
  NIBBLE_ASSIGN_OR_RETURN(const AdviceReport report,
                          advise(model, options, make_counter("advise", "layer shapes")));
  NIBBLE_RETURN_IF_ERROR(timings.save());
  std::vector<Line> lines;
  for (const Advice& advice : report.advice) {
    lines.push_back({&advice,
                     fits(advice, line.number("budget-ms"), line.integer("budget-mb")),
                     std::nullopt});
  }
  bool best = true;
  for (Line& entry : lines) {
    const bool wins = entry.fits && entry.advice->verdict.empty();
    if (line.has("measure-all") || (line.has("measure") && wins && best)) {
      NIBBLE_ASSIGN_OR_RETURN(const MeasuredAdvice measured,
                              measure_advice(model, *entry.advice, options));
      entry.measured = measured;
    }
    if (wins) best = false;
  }
  if (line.wants_json()) {
    std::cout << to_json(report, lines, options)
                     .dump(-1, ' ', false, Json::error_handler_t::replace)
              << "\n";
  } else {
    print(report, lines, options, timings);
  }
  return ok_status();
}

}  // namespace nibble
