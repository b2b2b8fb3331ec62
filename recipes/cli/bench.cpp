// nibble bench: how fast a model runs on this machine, beside another one.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "kernels/base/parallel.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/console.h"
#include "recipes/cli/verb.h"
#include "recipes/eval/kernel_speed.h"
#include "recipes/eval/layer_speed.h"
#include "recipes/eval/model_data.h"
#include "recipes/eval/speed.h"
#include "recipes/report/quality_json.h"
#include "recipes/report/run_report.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

Json to_json(const std::string& path, const Measurement& size, const Speed& speed) {
  Json json = {{"model", path},
               {"bytes", size.bytes},
               {"bits_per_weight", size.bits_per_weight},
               {"kernels", speed.kernels},
               {"cpu", speed.cpu}};
  if (size.cache) json["kv_cache"] = cache_json(*size.cache);
  const auto add = [&json](const std::string& name, const Rate& rate) {
    if (rate.repeats == 0) return;
    json[name] = rate.median;
    json[name + "_quartiles"] = {rate.low, rate.high};
    json["repeats"] = rate.repeats;
  };
  add("decode_tokens_per_second", speed.decode);
  add("prefill_tokens_per_second", speed.prefill);
  add("images_per_second", speed.images);
  add("sentences_per_second", speed.sentences);
  return json;
}

Json to_json(const Rate& rate) {
  if (rate.repeats == 0) return Json();
  return {{"median", rate.median}, {"quartiles", {rate.low, rate.high}}};
}

Json to_json(const KernelSpeeds& speeds) {
  const Machine& machine = speeds.limits.machine;
  Json json = {{"cpu", machine.text()},
               {"make", machine.make},
               {"level", machine.levels.front()},
               {"cpus", machine.cpus},
               {"huge_pages", machine.huge_pages},
               {"shape", {speeds.rows, speeds.cols}},
               {"working_set", speeds.working_set}};
  if (!speeds.limits.note.empty()) json["note"] = speeds.limits.note;
  for (const Cache& cache : machine.caches) {
    json["caches"].push_back({{"level", cache.level},
                              {"bytes", cache.bytes},
                              {"shared_by", cache.shared_by},
                              {"line", cache.line}});
  }
  for (const BandwidthLimit& limit : speeds.limits.bandwidths) {
    json["read"].push_back({{"level", limit.level},
                            {"bytes", limit.bytes},
                            {"threads", limit.threads},
                            {"bytes_per_second", to_json(limit.rate)}});
  }
  for (const PeakLimit& limit : speeds.limits.peaks) {
    Json row = {{"instruction", limit.row->name},
                {"numbers", numbers_name(limit.row->numbers)},
                {"threads", limit.threads},
                {"operations_per_second", to_json(limit.rate)}};
    if (!limit.refused.empty()) row["refused"] = limit.refused;
    json["peaks"].push_back(std::move(row));
  }
  for (const KernelSpeed& s : speeds.cases) {
    json["cases"].push_back({{"group", s.group},
                             {"scheme", s.scheme},
                             {"activation", s.activation},
                             {"tokens", s.tokens},
                             {"threads", s.threads},
                             {"kernel", s.kernel},
                             {"regime", s.regime},
                             {"chosen", s.chosen},
                             {"instruction", s.instruction},
                             {"instruction_operations", s.instruction_operations},
                             {"weight_bytes", s.weight_bytes},
                             {"written_bytes", s.written_bytes},
                             {"weights", s.weights},
                             {"repeats", s.seconds.repeats},
                             {"seconds", to_json(s.seconds)},
                             {"bytes_per_second", to_json(s.bytes)},
                             {"operations_per_second", to_json(s.operations)},
                             {"read_bandwidth", to_json(s.read)},
                             {"write_bandwidth", to_json(s.write)},
                             {"peak", to_json(s.peak)},
                             {"of_read", to_json(s.of_read)},
                             {"of_peak", to_json(s.of_peak)},
                             {"error", s.error < 0 ? Json() : Json(s.error)},
                             {"other_processes_cores", s.others}});
  }
  return json;
}

// "4096x11008"
Status parse_shape(const std::string& text, KernelSpeedOptions& options) {
  int end = 0;
  long long rows = 0, cols = 0;
  if (std::sscanf(text.c_str(), "%lldx%lld%n", &rows, &cols, &end) != 2 ||
      static_cast<size_t>(end) != text.size()) {
    return error(StatusCode::invalid_argument,
                 "[bench] --shape: ROWSxCOLS is required; found \"", text,
                 "\"; give for example 4096x4096");
  }
  options.rows = rows;
  options.cols = cols;
  return ok_status();
}

// "attention,conv", "all"; the sweep is asked for by its own flag as well.
std::vector<std::string> groups_of(const CommandLine& line) {
  std::vector<std::string> groups;
  const std::string text = line.text("cases");
  if (text == "all") {
    groups.assign(std::begin(kKernelGroups), std::end(kKernelGroups));
    return groups;
  }
  for (size_t first = 0; line.has("cases") && first <= text.size();) {
    const size_t end = std::min(text.find(',', first), text.size());
    groups.push_back(text.substr(first, end - first));
    first = end + 1;
  }
  const bool named = std::find(groups.begin(), groups.end(), "sweep") != groups.end();
  if (line.has("sweep") && !named) groups.push_back("sweep");
  if (groups.empty()) groups.push_back("linear");
  return groups;
}

// bench --kernels: the table of kernels by itself, without a model.
Status run_kernels(const CommandLine& line) {
  for (const char* option : {"MODEL", "reference", "layers", "text", "kv", "compute"}) {
    if (!line.has(option)) continue;
    return error(StatusCode::invalid_argument, "[bench] --kernels: the kernels are timed "
                 "without a model; found ", option == std::string("MODEL") ? "" : "--",
                 option, "; leave one of them out");
  }
  KernelSpeedOptions options{.context = line.integer("context"),
                             .working_set = line.integer("working-set"),
                             .repeats = line.integer("repeats"),
                             .filter = line.text("filter"),
                             .groups = groups_of(line)};
  if (line.has("shape")) NIBBLE_RETURN_IF_ERROR(parse_shape(line.text("shape"), options));
  if (line.has("threads")) options.threads = {thread_count()};
  options.progress = [progress = make_progress()](int64_t done, int64_t total,
                                                  const std::string& what) {
    progress("kernels", what, done, total);
  };
  NIBBLE_ASSIGN_OR_RETURN(const KernelSpeeds speeds, measure_kernels(options));
  options.progress = nullptr;  // ends the line
  if (line.has("report")) {
    RunReport report;
    report.verb = "bench";
    report.model = cat("kernels, ", speeds.rows, "x", speeds.cols);
    report.recipe_name = speeds.limits.machine.text();
    report.kernels = speeds;
    NIBBLE_RETURN_IF_ERROR(
        write_file_atomically(line.path("report"), report_html(report)));
  }
  if (line.wants_json()) {
    std::cout << to_json(speeds).dump(-1, ' ', false, Json::error_handler_t::replace)
              << "\n";
    return ok_status();
  }
  std::cout << kernel_speed_heading(speeds) << "\n"
            << table_text(limit_rows(speeds.limits)) << "\n"
            << table_text(kernel_speed_rows(speeds));
  return ok_status();
}

// MODEL alone, decode and prefill.
Status run_on_gpu(const CommandLine& line, const std::shared_ptr<cuda::Runner>& gpu) {
  for (const char* option : {"reference", "layers", "report", "text"}) {
    if (!line.has(option)) continue;
    return error(StatusCode::unsupported, "[bench] --", option,
                 ": --device cpu is required with it; found ", line.text("device"),
                 "; leave one of them out");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Artifact artifact,
                          load_model(line.path("MODEL"), line.load_options()));
  const SpeedOptions options{.repeats = line.integer("repeats"),
                             .decode_tokens = line.integer("tokens"),
                             .prefill_tokens = line.integer("prefill")};
  const int64_t capacity =
      std::min(artifact.program.context_length,
               std::max(options.prefill_tokens, options.decode_tokens + 16));
  NIBBLE_ASSIGN_OR_RETURN(
      cuda::Decoder decoder,
      cuda::Decoder::create(artifact, {.capacity = capacity, .kv = line.text("kv")},
                            gpu));
  NIBBLE_ASSIGN_OR_RETURN(const Speed speed,
                          measure_gpu_speed(decoder, gpu->name(), options));
  const Measurement size =
      measure_size(artifact, line.path("MODEL").lexically_normal().filename().string());
  const double bytes = static_cast<double>(decoder.weight_bytes());
  if (line.wants_json()) {
    Json json = to_json(line.text("MODEL"), size, speed);
    json["device"] = json["cpu"];
    json.erase("cpu");
    json["weight_bytes_per_token"] = decoder.weight_bytes();
    std::cout << json.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
    return ok_status();
  }
  std::string kernels;
  for (const auto& [name, layers] : speed.kernels)
    kernels += cat(kernels.empty() ? "" : ", ", name, " x ", layers);
  std::cout << table_text({{"model", "size", "bits", "decode tokens/s",
                            "weights read, GB/s", "prefill tokens/s", "kernels"},
                           {size.name, bytes_text(size.bytes),
                            number_text(size.bits_per_weight, 4), rate_text(speed.decode),
                            number_text(bytes * speed.decode.median / 1e9, 4),
                            rate_text(speed.prefill), kernels}})
            << "on  " << speed.cpu << "\n";
  return ok_status();
}

}  // namespace

Status run_bench_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "bench (MODEL [--reference MODEL] | --kernels [--cases GROUP,...] [--sweep])",
      "Tokens a second one at a time (decode) and in one call (prefill), images a second in "
      "batches of 32,\nor sentences of 32 tokens a second, one after another (encoders). Median and quartiles of repeats; two models take "
      "turns, so that both see the same machine.\n"
      "--kernels: every kernel by itself, beside the read bandwidth and the peak of its "
      "instruction, measured in turns.\n"
      "Its cases: linear (the default), attention, conv, memory (quantize, pack, norms) "
      "and sweep.");
  line.positional("MODEL");
  line.flag("kernels", "time the kernels against this machine's limits; no MODEL");
  line.waive("MODEL", "kernels");
  line.text("shape", "ROWSxCOLS", "--kernels: of a weight (default: 4096x4096)");
  line.integer("working-set",
               "--kernels: bytes of weights that decode goes through; 0: four times the "
               "largest cache and at least 1 GiB",
               0, 0);
  line.text(
      "cases", "GROUP,...",
      "--kernels: linear, attention, conv, memory, sweep, or all (default: linear)");
  line.flag(
      "sweep",
      "--kernels: int4 and int8 weights at 1 to 64 tokens, by every regime that a row "
      "could take there (chosen ones without parentheses)");
  line.integer("context", "--kernels: positions of the KV caches of attention", 8192, 1);
  line.text("filter", "TEXT",
            "--kernels: cases whose \"SCHEME ACTIVATION TOKENS\" has TEXT in it, which "
            "other groups than linear begin with their name");
  line.text("reference", "MODEL", "time this one too, in turns");
  line.integer("repeats", "timings of each", 9, 1);
  line.integer("tokens", "decoded in one timing", 32, 1);
  line.integer("prefill", "tokens of one prefill, at most the context", 256, 1);
  line.flag("layers", "time each kind of linear layer of MODEL by itself too");
  line.text("report", "FILE", "write sizes and speeds with their plots as a web page");
  line.text("text", "FILE", "encoders: time this text's sentences, or ids (safetensors)");
  line.integer("limit", "encoders: at most so many sentences; 0: all", 0, 0);
  line.integer("batch", "encoders: sentences a call", 1, 1);
  line.text("compute", kComputeNames,
            "activations of weight-only layers (default: float)");
  line.kv_option();
  line.device_option();
  line.model_options();
  line.json();
  line.example(
      "nibble bench build/w4 --reference recipes/examples/stories",
      "two models in turns, so that both see the same machine");
  line.example(
      "nibble bench build/w4 --layers --report build/speed.html",
      "weight bytes and operations a second of every kernel and shape, plotted");
  line.example(
      "nibble bench build/w4 --threads 1 --cpu avx2 --json",
      "one thread, kernels of at most AVX2");
  line.example("nibble bench --kernels --filter \"int4/g128@f16 s8\"",
               "decode and prefill of w4a8, as fractions of what this machine can do");
  line.example("nibble bench --kernels --cases attention,conv,memory --threads 2",
               "the kernels beside linear layers, two threads");
  line.example("nibble bench --kernels --sweep --filter \"int4/g128@f16 s8\"",
               "time of a call at 1 to 64 tokens, and which regime ran");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  if (line.has("kernels")) return run_kernels(line);
  for (const char* option :
       {"shape", "working-set", "filter", "cases", "sweep", "context"}) {
    if (!line.has(option)) continue;
    return error(StatusCode::invalid_argument, "[bench] --", option,
                 ": --kernels is required with it; found a model; add --kernels or leave "
                 "it out");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Compute compute, compute_option(line));
  NIBBLE_ASSIGN_OR_RETURN(const std::string kv, kv_option(line));
  NIBBLE_ASSIGN_OR_RETURN(const std::shared_ptr<cuda::Runner> gpu,
                          device_option(line, "bench"));
  if (gpu != nullptr) return run_on_gpu(line, gpu);

  std::vector<std::string> paths = {line.text("MODEL")};
  if (line.has("reference")) paths.push_back(line.text("reference"));
  std::vector<Executor> models;
  std::vector<Executor*> pointers;
  std::vector<Measurement> sizes;
  for (size_t i = 0; i < paths.size(); ++i) {
    LoadOptions options = line.load_options();
    if (i > 0) options.tokenizer.clear();
    NIBBLE_ASSIGN_OR_RETURN(Artifact artifact, load_model(paths[i], options));
    const std::string name =
        std::filesystem::path(paths[i]).lexically_normal().filename().string();
    sizes.push_back(measure_size(artifact, name));
    // The reference runs as it is; --compute is a question about MODEL.
    NIBBLE_ASSIGN_OR_RETURN(
        Executor model,
        Executor::create(
            std::make_shared<const Artifact>(std::move(artifact)),
            ExecutorOptions{.compute = i == 0 ? compute : Compute::float_activations,
                            .kv = i == 0 ? kv : std::string()}));
    sizes.back().cache = measure_cache(model);
    models.push_back(std::move(model));
  }
  for (Executor& model : models) pointers.push_back(&model);
  SpeedOptions options{.repeats = line.integer("repeats"),
                       .decode_tokens = line.integer("tokens"),
                       .prefill_tokens = line.integer("prefill"),
                       .batch = line.integer("batch")};
  if (line.has("text")) {
    const Artifact& first = models.front().artifact();
    if (!first.program.is_encoder()) {
      return error(StatusCode::invalid_argument, "[bench] --text: an encoder is required; "
                   "found ", first.program.architecture, "; leave --text out");
    }
    TextOptions text;
    text.length = 0;  // the context
    text.limit = line.integer("limit");
    NIBBLE_ASSIGN_OR_RETURN(TextData data,
                            load_sentences_for(first, line.path("text"), text));
    options.sentences = std::move(data.sequences);
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Speed> speeds,
                          measure_speed(pointers, options));

  std::vector<LayerSpeed> layers;
  const bool text_model = models.front().artifact().program.is_language_model();
  if (line.has("layers") || (line.has("report") && text_model)) {
    NIBBLE_ASSIGN_OR_RETURN(layers, measure_layers(models.front(), options.repeats,
                                                   options.prefill_tokens));
  }
  if (line.has("report")) {
    RunReport report;
    report.verb = "bench";
    report.model = sizes[0].name;
    report.recipe_name = "speed on " + speeds[0].cpu;
    report.after = sizes[0];
    report.after.speed = speeds[0];
    if (speeds.size() > 1) {
      report.before = sizes[1];
      report.before->speed = speeds[1];
    }
    report.layers = layers;
    NIBBLE_RETURN_IF_ERROR(
        write_file_atomically(line.path("report"), report_html(report)));
  }

  if (line.wants_json()) {
    Json json = to_json(paths[0], sizes[0], speeds[0]);
    json["compute"] = compute_name(compute);
    for (const LayerSpeed& kind : layers) {
      const auto rate = [](const Rate& r) {
        return Json{{"median", r.median}, {"quartiles", {r.low, r.high}}};
      };
      json["layers"].push_back({{"kernel", kind.kernel},
                                {"scheme", kind.scheme},
                                {"shape", {kind.rows, kind.cols}},
                                {"layers", kind.layers},
                                {"decode_bytes_per_second", rate(kind.decode)},
                                {"prefill_flops", rate(kind.prefill)},
                                {"prefill_tokens", options.prefill_tokens}});
    }
    if (speeds.size() > 1) json["reference"] = to_json(paths[1], sizes[1], speeds[1]);
    std::cout << json.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
    return ok_status();
  }
  std::vector<std::vector<std::string>> rows = {{"model", "size", "bits", "KV cache",
                                                 "decode tokens/s", "prefill tokens/s",
                                                 "images/s", "sentences/s", "kernels"}};
  for (size_t i = 0; i < speeds.size(); ++i) {
    std::string kernels;
    for (const auto& [name, layers] : speeds[i].kernels) {
      kernels += cat(kernels.empty() ? "" : ", ", name, " x ", layers);
    }
    rows.push_back({sizes[i].name, bytes_text(sizes[i].bytes),
                    number_text(sizes[i].bits_per_weight, 4),
                    sizes[i].cache ? cache_text(*sizes[i].cache) : "-",
                    rate_text(speeds[i].decode), rate_text(speeds[i].prefill),
                    rate_text(speeds[i].images), rate_text(speeds[i].sentences), kernels});
  }
  std::cout << table_text(rows) << "on  " << speeds[0].cpu << "\n";
  if (!layers.empty()) std::cout << "\n" << table_text(layer_speed_rows(layers));
  return ok_status();
}

}  // namespace nibble
