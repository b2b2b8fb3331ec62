// One quantization from plan to files, block by block, below a cap of memory, and so that a
// killed run goes on where it was.
//
// What is solved goes to OUTPUT.run/artifact with a journal beside it
// (kernels/artifact/artifact_writer.h); finish puts it in its place. An error or Ctrl-C
// removes OUTPUT.run; a kill, and a peak above the cap, leave it for the next run of the
// same model, recipe, data and version. Throws nibble::Error.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>

#include "kernels/artifact/artifact_writer.h"
#include "ptq/calibration/artifact_sink.h"
#include "ptq/stream.h"
#include "recipes/recipe/predict.h"
#include "recipes/torch/run_parts.h"

namespace nibble {

// What a kill between the last two steps left of a run that was done.
void remove_finished_work(const std::filesystem::path& output);

// "block 2 of 8: 7 layers, output error 0.000331, peak 345.47 MB, 3 s, 9 s left"; seconds
// since the start, when first_done layers were solved already. Of a transform
// "awq, block 2 of 8: 4 groups of layers, peak ...".
std::string block_text(const BlockDone& done, double seconds, int64_t first_done);

class StreamedRun {
 public:
  // All outlive the run.
  StreamedRun(const PipelineRequest& request, std::shared_ptr<const Artifact> model,
              const Plan& plan, const CalibrationData& data, const MemoryPlan& memory);
  ~StreamedRun();
  StreamedRun(const StreamedRun&) = delete;
  StreamedRun& operator=(const StreamedRun&) = delete;

  // Every layer of the plan; report gets the time and notes. resource_exhausted: the peak
  // passed the cap.
  Status solve(const Provenance& provenance, RunReport& report);
  // The first rank's: the artifact, as views of its files; then everything to its place.
  Artifact freeze(const Provenance& provenance);
  Status finish(const Artifact& artifact, RunReport& report);

 private:
  std::string fingerprint(const Provenance& provenance, const Plan& plan) const;
  void share_resumed(SolvedLayers& solved, const Plan& plan, const ArtifactSink* sink);
  void block_done(const BlockDone& done, double seconds, int64_t first_done);

  const PipelineRequest& request_;
  std::shared_ptr<const Artifact> model_;
  const Plan& plan_;
  const CalibrationData& data_;
  const MemoryPlan& memory_;
  std::filesystem::path work_;  // OUTPUT.run
  bool owns_work_ = false, keeps_work_ = false;
  // Where the step that runs began, for the time that is left.
  std::string step_;
  std::chrono::steady_clock::time_point step_start_, last_done_;
  std::optional<ArtifactWriter> writer_;
  FoundScales found_;
  std::optional<Calibrated> calibrated_;
};

}  // namespace nibble
