// nibble evaluate: perplexity or accuracy of a model, and how far it is from a reference.
#include <iostream>
#include <nlohmann/json.hpp>

#include "recipes/cli/command_line.h"
#include "recipes/cli/console.h"
#include "recipes/cli/verb.h"
#include "recipes/eval/embeddings.h"
#include "recipes/eval/model_data.h"
#include "recipes/report/run_report.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

struct Models {
  std::optional<Executor> model, reference;
  Executor* reference_or_null() { return reference ? &*reference : nullptr; }
};

Result<Executor> open(const std::filesystem::path& path, const LoadOptions& options,
                      Compute compute) {
  NIBBLE_ASSIGN_OR_RETURN(Artifact artifact, load_model(path, options));
  return Executor::create(std::make_shared<const Artifact>(std::move(artifact)),
                          ExecutorOptions{.compute = compute});
}

void print(const Json& json, const Measurement& measurement, const std::string& data,
           bool as_json) {
  if (as_json) {
    std::cout << json.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
  } else {
    std::cout << table_text(measurement_rows({&measurement})) << "measured on  " << data
              << "\n";
  }
}

Status evaluate_on_text(const CommandLine& line, Models& models, Json& json,
                        Measurement& measurement) {
  const Artifact& artifact = models.model->artifact();
  TextOptions options;
  options.length = line.integer("sequence-length");
  if (options.length == 0) options.length = default_sequence_length(artifact);
  options.per_line = line.has("per-line");
  options.min_chars = line.integer("min-chars");
  options.limit = line.integer("limit");
  options.append_eos = line.has("append-eos");
  NIBBLE_ASSIGN_OR_RETURN(const TextData data,
                          load_text_for(artifact, line.path("text"), options));
  NIBBLE_ASSIGN_OR_RETURN(
      const TextQuality quality,
      evaluate_text(*models.model, models.reference_or_null(), data.sequences,
                    make_counter("evaluate", "sequences")));
  json["perplexity"] = quality.perplexity;
  json["perplexity_ci95"] = {quality.perplexity_ci95.low, quality.perplexity_ci95.high};
  json["nll"] = quality.nll;
  json["tokens"] = quality.tokens;
  json["sequences"] = quality.sequences;
  json["sequence_length"] = options.length;
  json["data"] = data.description;
  if (quality.kl) {
    json["kl"] = *quality.kl;
    json["kl_ci95"] = {quality.kl_ci95.low, quality.kl_ci95.high};
  }
  if (quality.top1_agreement) json["top1_agreement"] = *quality.top1_agreement;
  if (line.has("per-sequence")) {
    json["sequence_nll"] = quality.sequence_nll;
    if (quality.kl) json["sequence_kl"] = quality.sequence_kl;
  }
  measurement.text = quality;
  std::string description =
      cat(data.description, ", ", quality.tokens, " predictions, at most ",
          options.length, " tokens a sequence");
  print(json, measurement, description, line.wants_json());
  return ok_status();
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
  print(json, measurement, data.description, line.wants_json());
  return ok_status();
}

Status evaluate_on_images(const CommandLine& line, Models& models, Json& json,
                          Measurement& measurement) {
  NIBBLE_ASSIGN_OR_RETURN(const ImageSet images,
                          load_images_for(models.model->artifact(), line.path("dataset"),
                                          Split::test, line.integer("limit")));
  NIBBLE_ASSIGN_OR_RETURN(const ImageQuality quality,
                          evaluate_images(*models.model, models.reference_or_null(),
                                          images, make_counter("evaluate", "images")));
  json["accuracy"] = quality.accuracy;
  json["accuracy_ci95"] = {quality.accuracy_ci95.low, quality.accuracy_ci95.high};
  json["images"] = quality.images;
  json["data"] = images.description;
  if (quality.argmax_agreement) json["argmax_agreement"] = *quality.argmax_agreement;
  measurement.images = quality;
  print(json, measurement, images.description, line.wants_json());
  return ok_status();
}

}  // namespace

Status run_evaluate_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "evaluate MODEL (--text FILE | --dataset DIR) [--reference MODEL]",
      "Perplexity on text or accuracy on images, with 95 % intervals; with a "
      "reference, the KL divergence\nKL(reference || this) in nats a token and how "
      "often both choose the same.\n\nText is cut into windows of --sequence-length "
      "tokens; a safetensors file with int32 input_ids\n[sequences, length] is taken "
      "row by row. Of an encoder: the cosine between the embeddings of the text's "
      "sentences\n(cut after . ! ? and at line ends) and the reference's.");
  line.positional("MODEL");
  line.text("text", "FILE", "UTF-8 text, or safetensors with input_ids");
  line.text("dataset", "DIR", "a CIFAR or MNIST folder; its test images are used");
  line.text("reference", "MODEL", "compare with this model, in float");
  line.integer("sequence-length", "tokens a window; 0: the model's context, at most 2048",
               0, 0);
  line.flag("per-line", "take each line of the text alone");
  line.integer("min-chars", "leave shorter lines (--per-line) or sentences out", 0, 0);
  line.flag("append-eos", "with --per-line: a whole line ends with the tokenizer's EOS");
  line.integer("limit", "at most so many sequences or images; 0: all", 0, 0);
  line.text("compute", "float|int8",
            "activations of weight-only layers (default: float)");
  line.flag("per-sequence", "with --json: every sequence's mean as well");
  line.model_options();
  line.json();
  line.example(
      "nibble evaluate build/w4 --text build/heldout.txt --per-line --reference recipes/examples/stories",
      "perplexity, and the distance to the float model");
  line.example(
      "nibble evaluate build/resnet --dataset cifar10 --reference resnet20.safetensors --json",
      "accuracy on the test images, for a script");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  if (line.has("text") == line.has("dataset")) {
    return error(StatusCode::invalid_argument,
                 "[evaluate] command line: one of --text and --dataset "
                 "is required; found ",
                 line.has("text") ? "both" : "none", "; give the data to measure on");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Compute compute, compute_option(line));

  Models models;
  NIBBLE_ASSIGN_OR_RETURN(models.model,
                          open(line.path("MODEL"), line.load_options(), compute));
  if (line.has("reference")) {
    LoadOptions options;
    options.architecture = line.text("architecture");
    NIBBLE_ASSIGN_OR_RETURN(models.reference, open(line.path("reference"), options,
                                                   Compute::float_activations));
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
               {"compute", !models.model->artifact().activations.empty() ? "integer"
                           : compute == Compute::dynamic_int8            ? "int8"
                                                                         : "float"},
               {"bytes", measurement.bytes},
               {"bits_per_weight", measurement.bits_per_weight}};
  if (measurement.quantized_bits_per_weight > 0) {
    json["quantized_bits_per_weight"] = measurement.quantized_bits_per_weight;
  }
  if (line.has("text") && models.model->artifact().program.is_encoder()) {
    return evaluate_on_sentences(line, models, json, measurement);
  }
  if (line.has("text")) return evaluate_on_text(line, models, json, measurement);
  return evaluate_on_images(line, models, json, measurement);
}

}  // namespace nibble
