#include "recipes/torch/run_parts.h"

#include <algorithm>

#include "export/validate/attest.h"
#include "kernels/base/cancel.h"
#include "kernels/base/file.h"
#include "kernels/runtime/kernel_names.h"
#include "recipes/eval/attested_figures.h"
#include "recipes/eval/embeddings.h"
#include "recipes/eval/model_data.h"
#include "recipes/recipe/nearest_name.h"
#include "recipes/report/training_log.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

std::string name_of(const fs::path& path) {
  const fs::path normal = path.lexically_normal();
  return normal.filename().empty() ? normal.parent_path().filename().string()
                                   : normal.filename().string();
}

void tell(const PipelineRequest& request, const std::string& line) {
  if (request.note) request.note(line);
}

std::function<void(int64_t, int64_t)> counter(const PipelineRequest& request,
                                              const char* stage, const char* what) {
  return [&request, stage, what](int64_t done, int64_t total) {
    if (request.progress) request.progress(stage, what, done, total);
  };
}

// Beside the output, whatever way its path is written ("dir/" too).
fs::path rejected_path(const PipelineRequest& request) {
  fs::path path = request.output.lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  return path += ".rejected";
}

Status measure_signals(const PipelineRequest& request, Executor* before, Executor& after,
                       const SignalSet& set, RunReport& report) {
  if (before != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(
        report.after.signals,
        evaluate_signals(after, *before, set, counter(request, "evaluate", "samples")));
  }
  if (set.targets.empty()) return ok_status();
  if (before != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(
        report.before->targets,
        evaluate_targets(*before, set, counter(request, "evaluate before", "samples")));
  }
  NIBBLE_ASSIGN_OR_RETURN(
      report.after.targets,
      evaluate_targets(after, set, counter(request, "evaluate after", "samples")));
  return ok_status();
}

Status measure_quality(const PipelineRequest& request, Executor* before, Executor& after,
                       const RunData& data, RunReport& report) {
  if (data.is_signals())
    return measure_signals(request, before, after, data.signals, report);
  if (data.is_text() && after.embedding_features() > 0) {
    if (before == nullptr) return ok_status();  // nothing to compare embeddings with
    NIBBLE_ASSIGN_OR_RETURN(
        report.after.embeddings,
        evaluate_embeddings(after, *before, data.sequences,
                            counter(request, "evaluate", "sentences")));
    return ok_status();
  }
  if (data.is_text()) {
    NIBBLE_ASSIGN_OR_RETURN(report.after.text,
                            evaluate_text(after, before, data.sequences,
                                          counter(request, "evaluate", "sequences")));
    if (before == nullptr) return ok_status();
    report.before->text = reference_quality(*report.after.text);
    if (has_quantized_cache(after)) {
      // The weights' share: the same artifact with an f32 cache.
      NIBBLE_ASSIGN_OR_RETURN(Executor weights,
                              make_executor(request, after.shared_artifact(), "f32"));
      Measurement part = measure_size(after.artifact(), "same, f32 cache");
      part.cache = measure_cache(weights);
      NIBBLE_ASSIGN_OR_RETURN(
          part.text, evaluate_text(weights, before, data.sequences,
                                   counter(request, "evaluate f32 cache", "sequences")));
      report.parts.push_back(std::move(part));
    }
    NIBBLE_ASSIGN_OR_RETURN(
        report.text_noise,
        measure_text_noise(*before, data.sequences, kFloorPredictions,
                           counter(request, "noise floor", "sequences")));
    return ok_status();
  }
  if (before != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(
        report.before->images,
        evaluate_images(*before, nullptr, data.images,
                        counter(request, "evaluate before", "images")));
    NIBBLE_ASSIGN_OR_RETURN(
        report.image_noise,
        measure_image_noise(*before, data.images, kFloorImages,
                            counter(request, "noise floor", "images")));
  }
  NIBBLE_ASSIGN_OR_RETURN(report.after.images,
                          evaluate_images(after, before, data.images,
                                          counter(request, "evaluate after", "images")));
  return ok_status();
}

// The outputs on the fixed input, and the figures with what they were measured on.
Status attest(const PipelineRequest& request, const Artifact* before, Executor& after,
              const RunData& data, RunReport& report) {
  Attestation proof;
  NIBBLE_ASSIGN_OR_RETURN(proof.outputs, attest_outputs(after));
  const Measurement& figures = report.after;
  std::optional<AttestedMeasurement> measured;
  if (figures.text) measured = attest_figures(*figures.text);
  if (figures.embeddings) measured = attest_figures(*figures.embeddings);
  if (figures.images) measured = attest_figures(*figures.images);
  if (measured) {
    AttestedData on = attested_data(data.file, data.options, data.description);
    on.kind = measured->data.kind;
    on.count = data.count();
    on.first = data.first;
    on.sha256 = data.is_text() ? data_sha256(data.sequences) : data_sha256(data.images);
    measured->data = std::move(on);
    measured->compute =
        !after.artifact().activations.empty() ? "integer" : request.recipe.compute;
    if (before != nullptr) measured->reference = before->provenance.sources;
    proof.measured.push_back(std::move(*measured));
  }
  report.proof = std::move(proof);
  return ok_status();
}

}  // namespace

Result<Executor> make_executor(const PipelineRequest& request,
                               std::shared_ptr<const Artifact> model,
                               const std::string& kv) {
  // A recipe's activations are about the quantized layers; a float model has none.
  NIBBLE_ASSIGN_OR_RETURN(
      const Compute compute,
      parse_compute(model->is_quantized() ? request.recipe.compute : ""));
  return Executor::create(std::move(model), {.compute = compute, .kv = kv});
}

Status check_request(const PipelineRequest& request, const char* verb,
                     const std::vector<std::string>& kinds) {
  const Recipe& recipe = request.recipe;
  if (std::find(kinds.begin(), kinds.end(), recipe.kind) == kinds.end()) {
    const bool quantizes = recipe.kind == "ptq";
    return error(StatusCode::invalid_argument, "[", verb, "] ", recipe.source,
                 ": a recipe of kind ", joined(kinds, " or "),
                 " is required; found kind ", recipe.kind, "; use nibble ",
                 quantizes ? "quantize" : "train", " for it");
  }
  std::error_code ignored;
  if (!request.overwrite && fs::exists(request.output, ignored)) {
    return error(
        StatusCode::already_exists, "[", verb, "] ", request.output.string(),
        ": a new directory is required; found one; choose another or give --overwrite");
  }
  const fs::path rejected = rejected_path(request);
  if (recipe.gate.any() && fs::exists(rejected, ignored) &&
      !is_artifact_directory(rejected)) {
    return error(StatusCode::already_exists, "[", verb, "] ", rejected.string(),
                 ": the name for an artifact that a gate rejects must be free or an "
                 "earlier one; found something else; choose another --output");
  }
  const fs::path parent = fs::absolute(request.output, ignored).parent_path();
  if (!fs::is_directory(parent, ignored)) {
    return error(StatusCode::not_found, "[", verb, "] ", request.output.string(),
                 ": its folder must exist; found no ", parent.filename().string(),
                 "; make it first");
  }
  return ok_status();
}

Result<Artifact> load_float_model(const PipelineRequest& request, const char* verb,
                                  bool initialise) {
  LoadOptions options = request.load;
  options.initialise = initialise;
  options.seed = request.recipe.train.seed;
  NIBBLE_ASSIGN_OR_RETURN(Artifact model, load_model(request.model, options));
  if (model.is_quantized()) {
    return error(StatusCode::invalid_argument, "[", verb, "] ", request.model.string(),
                 ": a float model is required; found an artifact that is quantized "
                 "already; give the "
                 "checkpoint that it was made from");
  }
  return model;
}

Result<RunData> load_run_data(const PipelineRequest& request, const Artifact& model,
                              const fs::path& path, int64_t length, Split split,
                              int64_t most_images) {
  RunData data;
  data.file = path;
  if (!model.program.is_language_model() && path.extension() == ".safetensors") {
    NIBBLE_ASSIGN_OR_RETURN(
        const std::vector<Carry> carries,
        parse_carries(request.recipe.data_carry, "[data] data.carry"));
    NIBBLE_ASSIGN_OR_RETURN(data.signals, load_signals(path, model.program, carries));
    data.description = data.signals.description;
    return data;
  }
  if (!model.program.is_language_model()) {
    NIBBLE_ASSIGN_OR_RETURN(data.images, load_images_for(model, path, split, most_images));
    data.description = data.images.description;
    return data;
  }
  const bool ids = path.extension() == ".safetensors";
  TextOptions options;
  options.length = std::min(length, model.program.context_length);
  options.per_line = request.recipe.data_per_line && !ids;
  options.min_chars = request.recipe.data_min_chars;
  options.append_eos = request.recipe.data_append_eos && !ids;
  NIBBLE_ASSIGN_OR_RETURN(TextData text, model.program.is_encoder()
                                             ? load_sentences_for(model, path, options)
                                             : load_text_for(model, path, options));
  data.options = options;
  data.sequences = std::move(text.sequences);
  data.description = std::move(text.description);
  return data;
}

// The last steps of streams, or samples: what `used` leaves of them, at most a fifth.
RunData held_out_signals(const Recipe& recipe, RunData& data, int64_t used) {
  RunData held;
  const int64_t all = parts_in(data.signals);
  const int64_t each = data.signals.count() / all;  // samples of one part
  int64_t taken = std::min({(data.count() - used) / each, (all + 4) / 5, all - 1});
  if (recipe.evaluation_images > 0)
    taken = std::min(taken, std::max<int64_t>(1, recipe.evaluation_images / each));
  if (taken < 1) {
    held.description =
        cat("nothing: all of ", data.description, " is used; give --evaluation");
    return held;
  }
  held.file = data.file;
  held.first = all - taken;
  held.signals = part_of(data.signals, all - taken, taken);
  held.description =
      cat("the last ", taken, data.signals.is_stream() ? " steps" : " samples", " of ",
          data.description, ", held out",
          data.signals.is_stream() ? ", states beginning as zeros" : "");
  data.signals = part_of(data.signals, 0, all - taken);
  return held;
}

Result<RunData> held_out_data(const PipelineRequest& request, const Artifact& model,
                              RunData& data, int64_t used, int64_t length) {
  const Recipe& recipe = request.recipe;
  const auto cut = [&recipe](RunData& held) {
    if (held.is_text()) {
      const int64_t most = recipe.evaluation_sequences;
      if (most > 0 && held.count() > most) {
        held.sequences.resize(static_cast<size_t>(most));
        held.description += cat(", the first ", most);
      }
    }
  };
  RunData held;
  if (!request.evaluation.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(
        held, load_run_data(request, model, request.evaluation, length, Split::test,
                            recipe.evaluation_images));
    cut(held);
    return held;
  }
  if (request.data.empty()) {
    held.description = "nothing: give --evaluation for quality before and after";
    return held;
  }
  if (data.is_signals()) return held_out_signals(recipe, data, used);
  if (!data.is_text()) {
    // A folder without test images is no error: the report says what is missing.
    Result<RunData> test =
        load_run_data(request, model, request.data, length, Split::test,
                      recipe.evaluation_images);
    if (!test.ok()) {
      held.description = "nothing: " + test.status().message();
      return held;
    }
    return test;
  }
  const int64_t spare = data.count() - used;
  const int64_t most =
      recipe.evaluation_sequences > 0 ? recipe.evaluation_sequences : spare;
  const int64_t taken = std::min(spare, most);
  if (taken < 1) {
    held.description =
        cat("nothing: all ", data.count(), " sequences of ",
            request.data.filename().string(), " were used; give --evaluation");
    return held;
  }
  held.file = data.file;
  held.options = data.options;
  held.first = data.first + data.count() - taken;
  held.sequences.assign(data.sequences.end() - taken, data.sequences.end());
  data.sequences.resize(data.sequences.size() - static_cast<size_t>(taken));
  held.description = cat("the last ", taken, " sequences of ",
                         request.data.filename().string(), ", held out");
  return held;
}

RunReport begin_report(const PipelineRequest& request, const char* verb) {
  RunReport report;
  report.verb = verb;
  report.model = name_of(request.model);
  report.output = request.output.string();
  report.recipe_name = request.recipe.name;
  report.recipe = print_recipe(request.recipe);
  return report;
}

Status read_compared(const PipelineRequest& request, RunReport& report) {
  for (const fs::path& path : request.compare) {
    const fs::path file = path / "measurements.json";
    NIBBLE_ASSIGN_OR_RETURN(const std::string json, read_text_file(file));
    NIBBLE_ASSIGN_OR_RETURN(Measurement other, parse_measurement(json, file.string()));
    report.others.push_back(std::move(other));
  }
  return ok_status();
}

Status measure_models(const PipelineRequest& request,
                      std::shared_ptr<const Artifact> before,
                      std::shared_ptr<const Artifact> after, const RunData& data,
                      RunReport& report) {
  report.evaluation = data.description;
  if (data.count() > 0) {
    report.evaluation += !after->activations.empty()
                             ? std::string("; the artifact on the integer path")
                         : request.recipe.static_activations
                             ? std::string("; the artifact's layers on codes")
                             : cat("; activations ", request.recipe.compute);
    if (data.is_text()) {
      size_t longest = 0;
      for (const auto& sequence : data.sequences)
        longest = std::max(longest, sequence.size());
      report.evaluation += cat("; at most ", longest, " tokens a sequence");
    }
  }
  std::optional<Executor> first;
  if (before != nullptr) {
    report.before = measure_size(*before, "before, float");
    NIBBLE_ASSIGN_OR_RETURN(first, make_executor(request, before));
  }
  report.after = measure_size(*after, request.recipe.name);
  NIBBLE_ASSIGN_OR_RETURN(Executor second, make_executor(request, after));
  report.after.cache = measure_cache(second);
  if (first) {
    report.before->cache = measure_cache(*first);
  }
  Executor* first_or_null = first ? &*first : nullptr;
  if (data.count() > 0) {
    NIBBLE_RETURN_IF_ERROR(measure_quality(request, first_or_null, second, data, report));
  }
  NIBBLE_RETURN_IF_ERROR(attest(request, before.get(), second, data, report));
  NIBBLE_RETURN_IF_ERROR(check_cancelled(report.verb.c_str()));
  tell(request, "timing both models");
  std::vector<Executor*> models = {&second};
  if (first) models.push_back(&*first);
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Speed> speeds,
                          measure_speed(models, {.repeats = 3, .prefill_tokens = 128}));
  report.after.speed = speeds[0];
  if (first) report.before->speed = speeds[1];
  return ok_status();
}

Status record_kernels(Artifact& artifact) {
  NIBBLE_ASSIGN_OR_RETURN(const auto kernels,
                          kernel_names(std::make_shared<const Artifact>(artifact), {}));
  for (LedgerEntry& entry : artifact.ledger.entries) {
    const auto found = kernels.find(entry.tensor);
    if (found != kernels.end()) entry.kernel = found->second;
  }
  return ok_status();
}

Status set_kv_schemes(const PipelineRequest& request, Artifact& artifact) {
  const std::string& kv = request.recipe.kv;
  if (kv != "f32" && artifact.program.states.empty())
    return error(StatusCode::invalid_argument,
                 "[quantize] kv: a model with KV caches is "
                 "required; found ",
                 artifact.program.architecture, "; leave kv out");
  for (ProgramState& state : artifact.program.states) {
    NIBBLE_ASSIGN_OR_RETURN(state.scheme,
                            parse_kv_scheme(kv, state.kv_heads, state.head_dim));
  }
  return ok_status();
}

Status check_gate_data(const PipelineRequest& request, const Artifact& model,
                       const RunData& data, const char* verb) {
  const QualityGate& gate = request.recipe.gate;
  if (!gate.any()) return ok_status();
  NIBBLE_RETURN_IF_ERROR(check_gate_kind(gate, model.program.is_language_model()));
  if (data.is_signals()) {
    return error(StatusCode::invalid_argument, "[", verb,
                 "] gate: text or images to measure it on is required; found ",
                 data.description, "; leave the gate out");
  }
  if (data.count() > 0) return ok_status();
  return error(StatusCode::failed_precondition, "[", verb,
               "] gate: held-out data is required to measure the gates on; found ",
               data.description, "; give --evaluation");
}

fs::path decide_output(const PipelineRequest& request, RunReport& report) {
  report.gates = check_gate(request.recipe.gate, report.after.text, report.after.images);
  for (const GateResult& result : report.gates)
    report.rejected = report.rejected || !result.met();
  if (!report.rejected) return request.output;
  const fs::path path = rejected_path(request);
  report.output = path.string();
  return path;
}

Status finish_artifact(const PipelineRequest& request, const Artifact& artifact,
                       RunReport& report) {
  const fs::path path = decide_output(request, report);
  return write_artifact(artifact, path, request.overwrite || report.rejected,
                        report_files(report), kShardBytes, [&](const fs::path& staged) {
                          return write_proof(report, artifact, staged);
                        });
}

Status write_proof(const RunReport& report, const Artifact& artifact,
                   const fs::path& directory) {
  if (!report.proof) return ok_status();
  return write_attestation(directory, "nibble", artifact, nullptr, *report.proof);
}

std::map<std::string, std::string> report_files(const RunReport& report) {
  std::map<std::string, std::string> files = {
      {"report.html", report_html(report)},
      {"measurements.json", print_measurement(report.after)}};
  if (!report.loss.empty()) {
    files["training.csv"] = training_csv(report.loss, report.figures);
    files[kEventFile] = tensorboard_events(report.loss, report.figures);
  }
  return files;
}

}  // namespace nibble
