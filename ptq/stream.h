// Calibration of models that memory does not hold: block by block, layers to where they
// are kept as soon as they are solved, samples over several processes.
//
// For language models whose layers are rounded or solved by methods that work on rows,
// after transforms that scale channels (awq, smoothquant): can_stream says so. Others go
// through calibrate(). What both do gives the same codes. Each node runs once a sample
// (twice where the float model is followed, and once for each transform), and a block's
// weights are in memory only while it runs.
//
// failed_precondition: too few sequences; invalid_argument, out_of_range: a sequence too
// long, an id outside the vocabulary; out_of_range: NaN or infinity in a layer's inputs
// (names the layer). Throws nibble::Error.
#pragma once

#include <filesystem>
#include <functional>

#include "kernels/artifact/artifact_writer.h"
#include "ptq/calibrate.h"
#include "ptq/calibration/found_scales.h"
#include "ptq/calibration/solved_layers.h"

namespace nibble {

bool can_stream(const Plan& plan, const Program& program);

struct StreamOptions {
  Progress progress = {};                                 // a layer; may be empty
  BlockProgress block_done = {};                          // may be empty; may throw
  std::filesystem::path spill = {};  // activations wait in a file there; "": in memory
  // LibTorch's name of where samples run and Hessians are summed ("cuda:1"); layers are
  // solved on the CPU.
  std::string device = "cpu";
  FoundScales* found = nullptr;  // of transforms, before an interruption; null: of none
};
// A layer that `solved` has already (of a run that was interrupted) is not solved again. The
// result has no codes: they are where `solved` put them.
Calibrated calibrate_into(SolvedLayers& solved, std::shared_ptr<const Artifact> model,
                          const Plan& plan, const CalibrationData& data,
                          const StreamOptions& options);

// What `writer` of a plan's artifact begins with.
ArtifactWriter::Outline outline_of(const Plan& plan, const Artifact& model);
// freeze() of what went to an ArtifactSink of `writer`: adds the floats, and returns views of
// the files.
Artifact freeze(const Calibrated& calibrated, const Provenance& provenance,
                ArtifactWriter& writer);

}  // namespace nibble
