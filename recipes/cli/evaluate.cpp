// nibble evaluate: perplexity or accuracy of a model, and how far it is from a reference.
#include <iostream>

#include "export/assemble.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "recipes/cli/attestation.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/console.h"
#include "recipes/cli/verb.h"
#include "recipes/eval/attested_figures.h"
#include "recipes/eval/embeddings.h"
#include "recipes/eval/model_data.h"
#include "recipes/report/quality_json.h"
#include "recipes/report/run_report.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr size_t kAttributedSequences = 8;

struct Models {
  std::optional<Executor> model, reference;
  // The model with an f32 cache, where its own is quantized: the weights' share.
  std::optional<Executor> float_cache;
  std::shared_ptr<cuda::Runner> gpu;  // where the model is measured, or null
  Executor* reference_or_null() { return reference ? &*reference : nullptr; }
};

Result<Executor> open(const std::filesystem::path& path, const LoadOptions& options,
                      Compute compute, const std::string& kv) {
  NIBBLE_ASSIGN_OR_RETURN(Artifact artifact, load_model(path, options));
  return Executor::create(std::make_shared<const Artifact>(std::move(artifact)),
                          ExecutorOptions{.compute = compute, .kv = kv});
}

// How much of the data the noise floor sees: 0 everything, -1 nothing.
int64_t floor_size(const CommandLine& line, int64_t otherwise) {
  if (line.has("noise-floor")) return 0;
  return line.has("no-noise-floor") || !line.has("reference") ? -1 : otherwise;
}

RunReport page_of(const CommandLine& line, const Measurement& measurement,
                  int64_t length) {
  RunReport report;
  report.verb = "evaluate";
  report.model = measurement.name;
  report.recipe_name = cat("windows of ", length, " tokens");
  report.after = measurement;
  report.recipe =
      cat("reference: ", line.path("reference").filename().string(), "\ncompute: ",
          is_gpu(line.text("device")) ? "bf16, on " + line.text("device")
          : line.has("compute")       ? line.text("compute")
                                      : "float",
          "\nkv: ", line.has("kv") ? line.text("kv") : "the artifact's",
          "\nsequence-length: ", length, "\nstride: ", line.integer("stride"), "\n");
  return report;
}

// A pass a layer: without --limit the first few sequences.
std::vector<std::vector<int32_t>> attributed(
    const std::vector<std::vector<int32_t>>& sequences, int64_t limit) {
  const size_t most = limit > 0 ? sequences.size() : kAttributedSequences;
  return {sequences.begin(), sequences.begin() + static_cast<std::ptrdiff_t>(
                                                     std::min(most, sequences.size()))};
}

std::string intervals_text(int64_t sequences, const char* what) {
  if (sequences == 1) return cat("none: one ", what, " alone has no interval, give more");
  return cat("95 %, bootstrap over ", sequences, " ", what, "s, ", kResamples,
             " resamples, seed ", kBootstrapSeed);
}

// --attest: the figures into proof.json, with what they were measured on. data: of the whole
// file, in its own kind.
Status attest(const CommandLine& line, const Models& models, AttestedMeasurement measured,
              AttestedData data) {
  if (!line.has("attest")) return ok_status();
  data.kind = measured.data.kind;
  data.count = measured.data.count;
  measured.data = std::move(data);
  measured.compute = !models.model->artifact().activations.empty() ? "integer"
                     : line.has("compute")                         ? line.text("compute")
                                                                   : "float";
  measured.kv = line.has("kv") ? line.text("kv") : "";
  if (models.reference) measured.reference = models.reference->artifact().provenance.sources;
  return attest_beside(line.path("MODEL"), line.load_options(), measured);
}

void print(const Json& json, const Measurement& measurement,
           const std::vector<Measurement>& parts,
           const std::vector<std::pair<std::string, std::string>>& lines, bool as_json) {
  if (as_json) {
    std::cout << json.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
    return;
  }
  std::vector<const Measurement*> columns = {&measurement};
  for (const Measurement& part : parts) columns.push_back(&part);
  std::cout << table_text(measurement_rows(columns));
  for (const auto& [label, text] : lines) std::cout << label << "  " << text << "\n";
  if (measurement.text && measurement.text->positions.size() > 1) {
    std::cout << "\n" << table_text(position_rows(columns));
  }
}

Status evaluate_on_text(const CommandLine& line, Models& models, Json& json,
                        Measurement& measurement) {
  const Artifact& artifact = models.model->artifact();
  TextOptions options;
  options.length = line.integer("sequence-length");
  if (options.length == 0) options.length = default_sequence_length(artifact);
  options.stride = line.integer("stride");
  options.per_line = line.has("per-line");
  options.min_chars = line.integer("min-chars");
  options.limit = line.integer("limit");
  options.append_eos = line.has("append-eos");
  NIBBLE_ASSIGN_OR_RETURN(const TextData data,
                          load_text_for(artifact, line.path("text"), options));
  const std::unique_ptr<TextModel> model =
      models.gpu == nullptr
          ? text_model(*models.model)
          : text_model(models.model->shared_artifact(), line.text("kv"), models.gpu);
  const std::unique_ptr<TextModel> reference =
      models.reference ? text_model(*models.reference) : nullptr;
  NIBBLE_ASSIGN_OR_RETURN(
      const TextQuality quality,
      evaluate_text(*model, reference.get(), data.sequences,
                    make_counter("evaluate", "sequences"), data.counted_from));
  add_quality(quality, json);
  if (models.gpu != nullptr) {
    json["device"] = line.text("device");
    json["kernels"] = model->kernels();
  }
  std::vector<Measurement> parts;
  if (models.gpu == nullptr) measurement.cache = measure_cache(*models.model);
  if (measurement.cache) json["kv_cache"] = cache_json(*measurement.cache);
  if (models.float_cache) {
    Measurement weights = measure_size(artifact, "same, f32 cache");
    NIBBLE_ASSIGN_OR_RETURN(
        weights.text,
        evaluate_text(*models.float_cache, &*models.reference, data.sequences,
                      make_counter("evaluate with an f32 cache", "sequences"),
                      data.counted_from));
    weights.cache = measure_cache(*models.float_cache);
    json["f32_cache"] = Json::object();
    add_quality(*weights.text, json["f32_cache"]);
    parts.push_back(std::move(weights));
  }
  json["sequence_length"] = options.length;
  if (options.stride > 0) json["stride"] = options.stride;
  json["data"] = data.description;
  json["intervals"] = intervals_text(quality.sequences, "sequence");
  if (line.has("per-sequence")) {
    json["sequence_nll"] = quality.sequence_nll;
    if (quality.kl) json["sequence_kl"] = quality.sequence_kl;
  }
  measurement.text = quality;
  std::vector<std::pair<std::string, std::string>> lines = {
      {"measured on",
       cat(data.description, ", ", quality.tokens, " predictions, at most ",
           options.length, " tokens a sequence",
           options.stride > 0 ? cat(", windows ", options.stride,
                                    " tokens apart, what they share counted once")
                              : std::string())},
      {"intervals", intervals_text(quality.sequences, "sequence")}};
  std::optional<TextNoise> noise;
  if (const int64_t size = floor_size(line, kFloorPredictions); size >= 0) {
    NIBBLE_ASSIGN_OR_RETURN(noise,
                            measure_text_noise(*models.reference, data.sequences, size,
                                               make_counter("noise floor", "sequences")));
    json["noise_floor"] = noise_json(*noise);
    json["kl_is_noise"] = noise->covers(quality);
    lines.emplace_back("noise floor", noise_text(*noise, &quality));
  }
  RunReport report = page_of(line, measurement, options.length);
  if (quality.kl) {
    report.before = measure_size(models.reference->artifact(), "reference");
    report.before->text = reference_quality(quality);
  }
  report.parts = parts;
  report.text_noise = noise;
  report.evaluation = lines[0].second;
  report.ledger = artifact.ledger;
  if (line.has("attribute") || line.has("attribute-alone")) {
    NIBBLE_ASSIGN_OR_RETURN(
        report.attribution,
        attribute_layers(*models.model, *models.reference,
                         attributed(data.sequences, line.integer("limit")),
                         line.has("attribute-alone"),
                         make_counter("attribute", "sequences")));
    json["attribution"] = attribution_json(*report.attribution);
  }
  print(json, measurement, parts, lines, line.wants_json());
  if (report.attribution && !line.wants_json()) {
    std::cout << "\n"
              << (report.attribution->alone
                      ? "each layer quantized alone"
                      : "what each layer would win with its float weights back")
              << ", KL in nats a token, on " << report.attribution->sequences
              << " sequences\n"
              << table_text(attribution_rows(*report.attribution));
  }
  AttestedData on = attested_data(line.path("text"), options, data.description);
  on.sha256 = data_sha256(data.sequences, data.counted_from);
  NIBBLE_RETURN_IF_ERROR(attest(line, models, attest_figures(quality), std::move(on)));
  if (!line.has("report")) return ok_status();
  return write_file_atomically(line.path("report"), report_html(report));
}

Status evaluate_on_sentences(const CommandLine& line, Models& models, Json& json,
                             Measurement& measurement) {
  const Artifact& artifact = models.model->artifact();
  if (!models.reference) {
    return error(StatusCode::invalid_argument, "[evaluate] ", line.text("MODEL"),
                 ": an encoder's embeddings are compared with a reference's; found none; "
                 "give --reference, the float model");
  }
  TextOptions options;
  options.length = line.integer("sequence-length");
  options.per_line = line.has("per-line");
  options.min_chars = line.integer("min-chars");
  options.limit = line.integer("limit");
  NIBBLE_ASSIGN_OR_RETURN(const TextData data,
                          load_sentences_for(artifact, line.path("text"), options));
  NIBBLE_ASSIGN_OR_RETURN(
      const EmbeddingQuality quality,
      evaluate_embeddings(*models.model, *models.reference, data.sequences,
                          make_counter("evaluate", "sentences")));
  json["cosine"] = quality.mean_cosine;
  json["cosine_ci95"] = {quality.mean_ci95.low, quality.mean_ci95.high};
  json["lowest_cosine"] = quality.lowest_cosine;
  json["lowest_sentence"] = quality.lowest;
  json["sentences"] = quality.sentences;
  json["tokens"] = quality.tokens;
  json["data"] = data.description;
  if (line.has("per-sequence")) json["sentence_cosine"] = quality.cosines;
  measurement.embeddings = quality;
  print(json, measurement, {}, {{"data", data.description}}, line.wants_json());
  AttestedData on = attested_data(line.path("text"), options, data.description);
  on.sha256 = data_sha256(data.sequences);
  return attest(line, models, attest_figures(quality), std::move(on));
}

Status evaluate_on_images(const CommandLine& line, Models& models, Json& json,
                          Measurement& measurement) {
  NIBBLE_ASSIGN_OR_RETURN(const ImageSet images,
                          load_images_for(models.model->artifact(), line.path("dataset"),
                                          Split::test, line.integer("limit")));
  NIBBLE_ASSIGN_OR_RETURN(const ImageQuality quality,
                          evaluate_images(*models.model, models.reference_or_null(),
                                          images, make_counter("evaluate", "images")));
  add_quality(quality, json);
  json["data"] = images.description;
  json["intervals"] = intervals_text(quality.images, "image");
  measurement.images = quality;
  std::vector<std::pair<std::string, std::string>> lines = {
      {"measured on", images.description},
      {"intervals", intervals_text(quality.images, "image")}};
  if (const int64_t size = floor_size(line, kFloorImages); size >= 0) {
    NIBBLE_ASSIGN_OR_RETURN(const ImageNoise noise,
                            measure_image_noise(*models.reference, images, size,
                                                make_counter("noise floor", "images")));
    json["noise_floor"] = noise_json(noise);
    lines.emplace_back("noise floor", noise_text(noise, &quality));
  }
  print(json, measurement, {}, lines, line.wants_json());
  AttestedData on = attested_data(line.path("dataset"), {}, images.description);
  on.sha256 = data_sha256(images);
  return attest(line, models, attest_figures(quality), std::move(on));
}

Status evaluate_on_signals(const CommandLine& line, Models& models, Json& json,
                           Measurement& measurement) {
  if (line.has("attest")) {
    return error(StatusCode::unsupported,
                 "[evaluate] --attest: text or images are required; found ",
                 line.text("dataset"), "; leave it out");
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Carry> carries,
                          carry_option(line, "evaluate"));
  NIBBLE_ASSIGN_OR_RETURN(
      const SignalSet set,
      load_signals(line.path("dataset"), models.model->artifact().program, carries,
                   line.integer("limit")));
  if (!models.reference && set.targets.empty()) {
    return error(StatusCode::invalid_argument, "[evaluate] ", set.description,
                 ": a reference or target.<output> tensors are required to measure "
                 "against; found neither; give --reference, the float model");
  }
  int64_t units = 0;
  if (models.reference) {
    NIBBLE_ASSIGN_OR_RETURN(measurement.signals,
                            evaluate_signals(*models.model, *models.reference, set,
                                             make_counter("evaluate", "samples")));
    json["signals"] = signal_json(*measurement.signals);
    units = measurement.signals->units;
  }
  if (!set.targets.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(
        measurement.targets,
        evaluate_targets(*models.model, set, make_counter("evaluate", "samples")));
    json["targets"] = signal_json(*measurement.targets);
    units = measurement.targets->units;
  }
  const char* what = set.is_stream() ? "32-step run" : "sample";
  json["data"] = set.description;
  json["intervals"] = intervals_text(units, what);
  print(json, measurement, {},
        {{"measured on", set.description}, {"intervals", intervals_text(units, what)}},
        line.wants_json());
  return ok_status();
}

}  // namespace

Status run_evaluate_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "evaluate MODEL (--text FILE | --dataset DIR|FILE) [--reference MODEL]",
      "Perplexity on text or accuracy on images, with 95 % intervals; with a "
      "reference, the KL divergence\nKL(reference || this) in nats a token and how "
      "often both choose the same.\n\nText is cut into windows of --sequence-length "
      "tokens, --stride tokens apart; a safetensors file with\nint32 input_ids "
      "[sequences, length] is taken row by row. What windows share is counted once, by "
      "the\nfirst. Intervals: bootstrap over sequences (images), 2,000 resamples, a "
      "fixed seed. With a reference,\nthe noise floor says how far the reference is "
      "from itself when it only adds in another order.\n\nOf an encoder: the cosine "
      "between the embeddings of the text's sentences (cut after . ! ? and at "
      "line\nends) "
      "and the reference's. Of a net over values (a .safetensors as --dataset, "
      "recipes/data/signals.h): each\noutput's relative error to the reference's, or to "
      "target.<output> of the file; --carry runs streams.");
  line.positional("MODEL");
  line.text("text", "FILE", "UTF-8 text, or safetensors with input_ids");
  line.text("dataset", "DIR|FILE",
            "a CIFAR or MNIST folder, or JPEG and PNG files in a folder a class; its test "
            "images; or safetensors with a tensor an input");
  line.carry_option();
  line.text("reference", "MODEL", "compare with this model, in float");
  line.integer("sequence-length", "tokens a window; 0: the model's context, at most 2048",
               0, 0);
  line.integer("stride", "tokens from one window to the next; 0: no overlap", 0, 0);
  line.flag("per-line", "take each line of the text alone");
  line.integer("min-chars", "leave shorter lines (--per-line) or sentences out", 0, 0);
  line.flag("append-eos", "with --per-line: a whole line ends with the tokenizer's EOS");
  line.integer("limit", "at most so many sequences or images; 0: all", 0, 0);
  line.text("compute", kComputeNames,
            "activations of weight-only layers (default: float)");
  line.flag("noise-floor",
            "measure the noise floor on all of the data, not on the first 2,048 "
            "predictions or 200 images");
  line.flag("no-noise-floor", "leave the noise floor out");
  line.flag(
      "attribute",
      "what each quantized layer costs: the KL that its float weights would win back, "
      "one layer at a time (without --limit on the first 8 sequences)");
  line.flag("attribute-alone",
            "the same the other way round: the float model with one layer quantized");
  line.text("report", "FILE", "text: write the figures with their plots as a web page");
  line.kv_option();
  line.device_option();
  line.flag("attest",
            "write the figures into proof.json beside a quantized model, for nibble validate "
            "--attestation");
  line.flag("per-sequence", "with --json: every sequence's mean as well");
  line.model_options();
  line.json();
  line.example(
      "nibble evaluate build/w4 --text build/heldout.txt --per-line --reference recipes/examples/stories",
      "perplexity, and the distance to the float model");
  line.example(
      "nibble evaluate build/resnet --dataset cifar10 --reference resnet20.safetensors --json",
      "accuracy on the test images, for a script");
  line.example(
      "nibble evaluate build/vad --dataset chunks.safetensors --carry stateN=state "
      "--reference detector.onnx --size sequence=576",
      "a voice detector on streams of audio, its state carried");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  if (line.has("text") == line.has("dataset")) {
    return error(StatusCode::invalid_argument,
                 "[evaluate] command line: one of --text and --dataset "
                 "is required; found ",
                 line.has("text") ? "both" : "none", "; give the data to measure on");
  }
  if (line.has("noise-floor") && !line.has("reference")) {
    return error(StatusCode::invalid_argument,
                 "[evaluate] --noise-floor: a reference is required, whose noise it is; "
                 "found none; give --reference MODEL");
  }
  const bool attribute = line.has("attribute") || line.has("attribute-alone");
  if (attribute && (!line.has("reference") || !line.has("text"))) {
    return error(StatusCode::invalid_argument,
                 "[evaluate] --attribute: --text and the float model as --reference are "
                 "required; found no ",
                 line.has("text") ? "reference" : "text", "; give both");
  }
  if (line.has("attribute") && line.has("attribute-alone")) {
    return error(StatusCode::invalid_argument,
                 "[evaluate] command line: one of --attribute and --attribute-alone is "
                 "required; found both; run it twice");
  }
  if (line.has("attest")) NIBBLE_RETURN_IF_ERROR(find_format(line.path("MODEL")).status());
  NIBBLE_ASSIGN_OR_RETURN(const Compute compute, compute_option(line));
  NIBBLE_ASSIGN_OR_RETURN(const std::string kv, kv_option(line));

  Models models;
  NIBBLE_ASSIGN_OR_RETURN(models.gpu, device_option(line, "evaluate"));
  if (models.gpu != nullptr && (!line.has("text") || attribute || line.has("attest"))) {
    return error(
        StatusCode::unsupported,
        "[evaluate] --device: --text is required with a GPU, without --attribute "
        "and --attest; found ",
        line.text("device"), "; leave --device out");
  }
  NIBBLE_ASSIGN_OR_RETURN(models.model,
                          open(line.path("MODEL"), line.load_options(), compute,
                               models.gpu == nullptr ? kv : std::string()));
  if (line.has("reference")) {
    LoadOptions options;
    options.architecture = line.text("architecture");
    options.sizes = line.load_options().sizes;
    NIBBLE_ASSIGN_OR_RETURN(models.reference, open(line.path("reference"), options,
                                                   Compute::float_activations, "f32"));
    const Program& a = models.model->artifact().program;
    const Program& b = models.reference->artifact().program;
    if (a.vocabulary != b.vocabulary) {
      return error(StatusCode::invalid_argument, "[evaluate] ", line.text("reference"),
                   ": a reference with the model's vocabulary of ", a.vocabulary,
                   " is required; found ", b.vocabulary,
                   "; give the model it was made from");
    }
  }
  const std::string name = line.path("MODEL").lexically_normal().filename().string();
  Measurement measurement = measure_size(models.model->artifact(), name);
  Json json = {{"model", line.text("MODEL")},
               {"compute", models.gpu != nullptr ? "bf16"
                           : !models.model->artifact().activations.empty()
                               ? "integer"
                               : compute_name(compute)},
               {"bytes", measurement.bytes},
               {"bits_per_weight", measurement.bits_per_weight}};
  if (measurement.quantized_bits_per_weight > 0) {
    json["quantized_bits_per_weight"] = measurement.quantized_bits_per_weight;
  }
  const bool encodes = models.model->artifact().program.is_encoder();
  if (line.has("report") && (encodes || !line.has("text"))) {
    return error(StatusCode::invalid_argument,
                 "[evaluate] --report: --text and a model that predicts tokens are required "
                 "for its plots; found ", encodes ? "an encoder" : "images",
                 "; leave it out, or see report.html beside the artifact");
  }
  if (line.has("text") && encodes) {
    return evaluate_on_sentences(line, models, json, measurement);
  }
  if (line.has("text") && models.reference && models.gpu == nullptr &&
      has_quantized_cache(*models.model)) {
    NIBBLE_ASSIGN_OR_RETURN(
        models.float_cache,
        Executor::create(models.model->shared_artifact(),
                         ExecutorOptions{.compute = compute, .kv = "f32"}));
  }
  if (line.has("text")) return evaluate_on_text(line, models, json, measurement);
  if (line.path("dataset").extension() == ".safetensors" &&
      !models.model->artifact().program.is_language_model())
    return evaluate_on_signals(line, models, json, measurement);
  return evaluate_on_images(line, models, json, measurement);
}

}  // namespace nibble
