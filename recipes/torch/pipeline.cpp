#include "recipes/torch/pipeline.h"

#include <ATen/Parallel.h>
#include <malloc.h>

#include "kernels/base/parallel.h"
#include "ptq/calibrate.h"
#include "recipes/data/text.h"
#include "recipes/eval/model_data.h"
#include "recipes/recipe/mixed_costs.h"
#include "recipes/torch/calibration.h"
#include "recipes/torch/exact_check.h"
#include "recipes/torch/pipeline_error.h"

namespace nibble {
namespace {

Result<RunReport> quantize(const PipelineRequest& request) {
  NIBBLE_RETURN_IF_ERROR(check_request(request, "quantize", {"ptq"}));
  RunReport report = begin_report(request, "quantize");
  NIBBLE_RETURN_IF_ERROR(read_compared(request, report));
  const Recipe& recipe = request.recipe;
  NIBBLE_ASSIGN_OR_RETURN(Artifact loaded, load_float_model(request, "quantize", false));
  const auto model = std::make_shared<const Artifact>(std::move(loaded));

  // The plan, and so every mistake in the recipe, before any data is read.
  NIBBLE_ASSIGN_OR_RETURN(Artifact folded,
                          prepare_for_plan(*model, recipe.static_activations));
  const auto planned = std::make_shared<const Artifact>(std::move(folded));
  NIBBLE_ASSIGN_OR_RETURN(Plan plan, make_plan(recipe, planned->program));
  NIBBLE_RETURN_IF_ERROR(set_mixed_costs(recipe, *planned, plan));
  Artifact states = *planned;  // a wrong kv is a mistake of the recipe too
  NIBBLE_RETURN_IF_ERROR(set_kv_schemes(request, states));
  if (recipe.needs_calibration() && request.data.empty()) {
    return error(StatusCode::failed_precondition, "[quantize] ", recipe.name,
                 ": calibration data is required; found none; give --calibration ",
                 model->program.is_language_model() ? "TEXT" : "DATASET");
  }

  RunData data;
  if (!request.data.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(data, load_run_data(request, *model, request.data,
                                                recipe.calibration_length, Split::train));
  }
  const CalibrationSplit split = split_calibration(recipe, data, plan, report.notes);
  NIBBLE_ASSIGN_OR_RETURN(
      const RunData held,
      held_out_data(request, *model, data, split.sequences, recipe.calibration_length));
  NIBBLE_RETURN_IF_ERROR(check_gate_data(request, *model, held, "quantize"));
  CalibrationData calibration;
  if (recipe.needs_calibration()) calibration = calibration_data(*model, data, split);
  if (!request.save_calibration.empty()) {
    if (calibration.sequences.empty()) {
      return error(StatusCode::invalid_argument,
                   "[quantize] --save-calibration: a recipe that calibrates on text is "
                   "required; found ",
                   recipe.name, "; leave it out");
    }
    NIBBLE_RETURN_IF_ERROR(save_token_sequences(
        request.save_calibration, calibration.sequences, request.overwrite));
  }
  report.calibration = calibration.description;

  const Calibrated calibrated = calibrate(planned, plan, calibration, request.progress);
  Provenance provenance = model->provenance;
  provenance.recipe = report.recipe;
  provenance.tool_version = kToolVersion;
  Artifact frozen = freeze(calibrated, provenance);
  NIBBLE_RETURN_IF_ERROR(set_kv_schemes(request, frozen));
  NIBBLE_RETURN_IF_ERROR(record_kernels(frozen));
  const auto artifact = std::make_shared<const Artifact>(std::move(frozen));
  report.ledger = artifact->ledger;
  if (recipe.static_activations && held.count() > 0) {
    report.notes.push_back(
        check_exact(*artifact, held.images, recipe.evaluation_exact_images));
  }
  NIBBLE_RETURN_IF_ERROR(measure_models(request, model, artifact, held, report));
  NIBBLE_RETURN_IF_ERROR(check_cancelled("quantize"));
  NIBBLE_RETURN_IF_ERROR(finish_artifact(request, *artifact, report));
  return report;
}

}  // namespace

Result<RunReport> run_quantize(const PipelineRequest& request) {
  return catching("quantize", [&request] {
    at::set_num_threads(thread_count());
    // Calibration makes and drops tensors of many sizes, which leave holes in the heap:
    // it doubled the peak. From this size on (256 KiB) they are mapped, and go back at
    // once.
    mallopt(M_MMAP_THRESHOLD, 1 << 18);
    return quantize(request);
  });
}

bool has_torch() { return true; }

}  // namespace nibble
