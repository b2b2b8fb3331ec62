#include "recipes/torch/pipeline.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <malloc.h>

#include <cstdlib>
#include <iostream>
#include <thread>

#include "kernels/base/memory.h"
#include "kernels/base/parallel.h"
#include "ptq/calibrate.h"
#include "ptq/calibration/kv_ranges.h"
#include "ptq/calibration/pooled_allocator.h"
#include "ptq/distributed/ranks.h"
#include "ptq/stream.h"
#include "recipes/data/text.h"
#include "recipes/eval/model_data.h"
#include "recipes/recipe/mixed_costs.h"
#include "recipes/recipe/predict.h"
#include "recipes/report/text_table.h"
#include "recipes/torch/calibration.h"
#include "recipes/torch/device.h"
#include "recipes/torch/exact_check.h"
#include "recipes/torch/pipeline_error.h"
#include "recipes/torch/streamed_run.h"

namespace nibble {
namespace {

// Time and memory, for people: never in a file.
void add_costs(const PipelineRequest& request, const MemoryPlan& memory,
               RunReport& report) {
  report.peak_memory = process_memory().peak;
  report.predicted_memory = memory.bytes();
  for (const MemoryPart& part : memory.parts)
    report.memory_parts.emplace_back(part.what, part.bytes);
  const int ranks = Ranks::instance().count();
  report.costs.push_back(
      cat("calibrated and solved in ", number_text(report.calibration_seconds, 4), " s",
          ranks > 1 ? cat(" by ", ranks, " processes") : std::string()));
  report.costs.push_back(cat(
      "memory  peak ", bytes_text(report.peak_memory), ", predicted ",
      bytes_text(report.predicted_memory),
      request.memory > 0 ? cat(", allowed ", bytes_text(request.memory)) : std::string(),
      memory.spills ? "; activations waited on disk" : ""));
}

Result<RunReport> quantize(const PipelineRequest& request) {
  if (Ranks::instance().is_first()) remove_finished_work(request.output);
  NIBBLE_RETURN_IF_ERROR(check_request(request, "quantize", {"ptq"}));
  RunReport report = begin_report(request, "quantize");
  NIBBLE_RETURN_IF_ERROR(read_compared(request, report));
  const Recipe& recipe = request.recipe;
  NIBBLE_ASSIGN_OR_RETURN(Artifact loaded, load_float_model(request, "quantize", false));
  const auto model = std::make_shared<const Artifact>(std::move(loaded));

  // The plan, and so every mistake in the recipe, before any data is read.
  NIBBLE_ASSIGN_OR_RETURN(Artifact folded, prepare_for_recipe(*model, recipe));
  const auto planned = std::make_shared<const Artifact>(std::move(folded));
  NIBBLE_ASSIGN_OR_RETURN(Plan plan, make_plan(recipe, planned->program));
  NIBBLE_RETURN_IF_ERROR(set_mixed_costs(recipe, *planned, plan));
  plan.mixed.losses = request.mixed_losses;
  Artifact states = *planned;  // a wrong kv is a mistake of the recipe too
  NIBBLE_RETURN_IF_ERROR(set_kv_schemes(request, states));
  if (recipe.needs_calibration() && request.data.empty()) {
    return error(StatusCode::failed_precondition, "[quantize] ", recipe.name,
                 ": calibration data is required; found none; give --calibration ",
                 model->program.is_language_model() ? "TEXT"
                 : has_integer_ends(model->program) ? "DATASET"
                                                    : "FILE.safetensors");
  }

  RunData data;
  if (!request.data.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(data, load_run_data(request, *model, request.data,
                                                recipe.calibration_length, Split::train,
                                                recipe.calibration_sequences));
  }
  // Of samples a part is held out before any are picked, of text what is left over.
  RunData held;
  if (data.is_signals()) {
    NIBBLE_ASSIGN_OR_RETURN(
        held, held_out_data(request, *model, data, 0, recipe.calibration_length));
  }
  const CalibrationSplit split = split_calibration(recipe, data, plan, report.notes);
  if (!data.is_signals()) {
    NIBBLE_ASSIGN_OR_RETURN(held, held_out_data(request, *model, data, split.sequences,
                                                recipe.calibration_length));
  }
  NIBBLE_RETURN_IF_ERROR(check_gate_data(request, *model, held, "quantize"));
  CalibrationData calibration;
  if (recipe.needs_calibration()) calibration = calibration_data(*planned, data, split);
  calibration.device = own_device(request.device);
  if (!request.save_calibration.empty() && is_first_rank()) {
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

  MemoryRequest needs = {
      .cap = request.memory,
      .threads = thread_count(),
      .exact = recipe.evaluation_exact_images > 0 ? recipe.evaluation_exact_images
                                                  : held.count(),
      .samples = held.is_signals() ? held.signals.streams : held.count(),
      .signals = held.is_signals(),
      .evaluates = Ranks::instance().is_first(),
      .compares = held.count() > 0};
  for (const RunData* loaded : {&data, &held}) {
    needs.data += static_cast<int64_t>(loaded->images.pixels.capacity());
    for (const SignalRows* rows :
         {&loaded->signals.inputs, &loaded->signals.starts, &loaded->signals.targets}) {
      for (const auto& [name, values] : *rows)
        needs.data += static_cast<int64_t>(values.capacity() * sizeof(float));
    }
  }
  needs.data += static_cast<int64_t>(calibration.images.bytes.size());
  for (const auto& [input, values] : calibration.values)
    needs.data += static_cast<int64_t>(values.bytes.size());
  for (const std::vector<int32_t>& ids : calibration.sequences) {
    needs.tokens += static_cast<int64_t>(ids.size());
    needs.longest = std::max(needs.longest, static_cast<int64_t>(ids.size()));
  }
  NIBBLE_ASSIGN_OR_RETURN(const MemoryPlan memory, plan_memory(plan, *planned, needs));
  if (!memory.evaluates && recipe.gate.any()) {
    return error(StatusCode::resource_exhausted,
                 "[quantize] gate: running both models takes about ",
                 bytes_text(memory.evaluation), "; found --memory ",
                 bytes_text(request.memory), "; allow more, or leave the gate out");
  }
  if (!memory.evaluates && recipe.kv_needs_calibration()) {
    return error(StatusCode::resource_exhausted,
                 "[quantize] kv: a static scale is found by running the artifact, which "
                 "takes about ",
                 bytes_text(memory.evaluation), "; found --memory ",
                 bytes_text(request.memory), "; allow more, or say kv=fp8 or kv=int8");
  }
  Provenance provenance = model->provenance;
  provenance.recipe = report.recipe;
  provenance.tool_version = kToolVersion;
  StreamedRun run(request, planned, plan, calibration, memory);
  NIBBLE_RETURN_IF_ERROR(run.solve(provenance, report));
  if (!Ranks::instance().is_first()) return report;  // the first one writes and says
  Artifact frozen = run.freeze(provenance);
  NIBBLE_RETURN_IF_ERROR(set_kv_schemes(request, frozen));
  NIBBLE_RETURN_IF_ERROR(calibrate_kv_scales(frozen, calibration.sequences));
  NIBBLE_RETURN_IF_ERROR(record_kernels(frozen));
  NIBBLE_RETURN_IF_ERROR(check_artifact(frozen));
  NIBBLE_RETURN_IF_ERROR(check_ledger(frozen.ledger, frozen.program));
  empty_memory_pool();
  const auto artifact = std::make_shared<const Artifact>(std::move(frozen));
  report.ledger = artifact->ledger;
  if (recipe.static_activations && held.count() > 0) {
    report.notes.push_back(check_exact(*artifact, held, recipe.evaluation_exact_images));
    empty_memory_pool();
  }
  if (memory.evaluates) {
    NIBBLE_RETURN_IF_ERROR(measure_models(request, model, artifact, held, report));
  } else {
    report.evaluation = cat("nothing: running both models takes about ",
                            bytes_text(memory.evaluation), ", more than --memory ",
                            bytes_text(request.memory), "; see nibble evaluate");
    report.before = measure_size(*model, "before, float");
    report.after = measure_size(*artifact, recipe.name);
  }
  NIBBLE_RETURN_IF_ERROR(check_cancelled("quantize"));
  NIBBLE_RETURN_IF_ERROR(run.finish(*artifact, report));
  add_costs(request, memory, report);
  return report;
}

}  // namespace

Result<RunReport> or_all_end(Result<RunReport> report) {
  if (report.ok() || ranks_asked_for() == 1) return report;
  // Mostly all fail alike; then the first one speaks.
  if (!is_first_rank()) std::this_thread::sleep_for(std::chrono::milliseconds(300));
  std::cerr << "nibble: " << report.status().message() << "\n" << std::flush;
  Ranks::instance().abort(1);
}

Result<RunReport> run_quantize(const PipelineRequest& request) {
  return or_all_end(catching("quantize", [&request]() -> Result<RunReport> {
    NIBBLE_RETURN_IF_ERROR(check_device(request.device, "quantize"));
    at::set_num_threads(thread_count());
    // What is no tensor: from this size on (256 KiB) it is mapped, and goes back at once
    // instead of leaving a hole in the heap.
    mallopt(M_MMAP_THRESHOLD, 1 << 18);
    use_pooled_allocator();
    Ranks::instance().check();
    return quantize(request);
  }));
}

bool has_torch() { return true; }

bool is_first_rank() {
  // Without starting MPI: what needs one rank alone never does.
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"}) {
    if (const char* text = std::getenv(name)) return std::atoi(text) == 0;
  }
  return true;
}

}  // namespace nibble
