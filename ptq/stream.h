// Calibration of models that memory need not hold: block by block, layers to where they
// are kept as soon as they are solved, samples over several processes.
//
// First what data decides before any layer is solved: factors of transforms, the schemes
// of mixed precision, the scales of static activations; a pass of the samples each. Then
// the layers (ptq/calibration/streaming_solver.h). Each node runs once a sample (twice
// where the float model is followed, and once for each pass before), and a block's
// weights are in memory only while it runs.
//
// calibrate() is this with everything in memory, and with what corrects a net whose
// layers are all solved (ptq/calibration/bias_correction.h).
//
// failed_precondition: too few sequences; invalid_argument, out_of_range: a sequence too
// long, an id outside the vocabulary; out_of_range: NaN or infinity in a layer's inputs
// (names the layer). Throws nibble::Error.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>

#include "kernels/artifact/artifact_writer.h"
#include "ptq/calibrate.h"
#include "ptq/calibration/found_scales.h"
#include "ptq/calibration/model_weights.h"
#include "ptq/calibration/solved_layers.h"

namespace nibble {

struct StreamOptions {
  Progress progress = {};                                 // a layer; may be empty
  BlockProgress block_done = {};                          // may be empty; may throw
  std::filesystem::path spill = {};  // activations wait in a file there; "": in memory
  // LibTorch's name of where samples run and Hessians are summed ("cuda:1"); layers are
  // solved on the CPU.
  std::string device = "cpu";
  // What is known from before an interruption, and takes what is found; null: nothing is.
  FoundScales* found = nullptr;
};

class StreamedCalibration {
 public:
  // Everything that comes before layers are solved. data and what options name outlive
  // it.
  StreamedCalibration(std::shared_ptr<const Artifact> model, const Plan& plan,
                      const CalibrationData& data, const StreamOptions& options);

  // As transforms have made it; factors that are still apart are none of its tensors.
  const Artifact& model() const { return *result_.model; }
  // Schemes as chosen, activations with their scales.
  const Plan& plan() const { return result_.plan; }
  // Once. A layer that `solved` has already (of a run that was interrupted) is not solved
  // again. The result has no codes: they are where `solved` put them.
  Calibrated solve(SolvedLayers& solved);
  // The same with the codes in the result, whose model has all that transforms changed.
  Calibrated solve_in_memory();

 private:
  void transform();
  void solve_layers(SolvedLayers& solved);
  void take_scaled(const std::function<bool(const std::string&)>& wanted);

  Calibrated result_;
  const CalibrationData& data_;
  StreamOptions options_;
  FoundScales none_;
  std::optional<ModelWeights> weights_;
  std::map<std::string, std::string> notes_;  // by tensor
};

// What `writer` of a plan's artifact begins with.
ArtifactWriter::Outline outline_of(const Plan& plan, const Artifact& model);
// freeze() of what went to an ArtifactSink of `writer`: adds the floats, and returns views of
// the files.
Artifact freeze(const Calibrated& calibrated, const Provenance& provenance,
                ArtifactWriter& writer);

}  // namespace nibble
