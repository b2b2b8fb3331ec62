// One quantization from plan to files, block by block, below a cap of memory, and so that
// a killed run goes on where it was.
//
// What is solved goes to OUTPUT.run/artifact with a journal beside it
// (kernels/artifact/artifact_writer.h); finish puts it in its place. A net that is
// corrected once its layers are solved (ptq/calibration/bias_correction.h) is read back
// from there, and written anew. An error or Ctrl-C removes OUTPUT.run; a kill, and a peak
// above the cap, leave it for the next run of the same model, recipe, data and version.
// Throws nibble::Error.
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
  // The first rank's: the artifact, as views of its files or in memory; then everything
  // to its place.
  Artifact freeze(const Provenance& provenance);
  Status finish(const Artifact& artifact, RunReport& report);

 private:
  std::string fingerprint(const Provenance& provenance, const Plan& plan) const;
  void share_resumed(SolvedLayers& solved, const Plan& plan, const ArtifactSink* sink);
  void read_back();
  Status finish_corrected(const Artifact& artifact, RunReport& report);
  void check_peak(bool kept, const std::string& after);
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
  std::chrono::steady_clock::time_point step_start_, last_done_, last_note_;
  std::optional<ArtifactWriter> writer_;
  FoundScales found_;
  std::optional<Calibrated> calibrated_;
};

}  // namespace nibble
