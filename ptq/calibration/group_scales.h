// Finds the factors of a transform that scales channels (ptq/methods/transform.h), group
// by group in program order, on the float model as the transforms before have left it:
//
//   1. the samples, in shards over the ranks, run up to the group's readers;
//   2. what the readers' inputs are is summed in the order of the shards;
//   3. the candidates' errors are computed, shared out among the ranks;
//   4. the best one's factors are the model's from here on: ModelWeights applies them.
//
// The model is never in memory as a whole, and no factor depends on the number of threads
// or ranks.
//
// out_of_range: NaN or infinity in what a group reads (names it). Throws nibble::Error.
#pragma once

#include <map>
#include <string>

#include "ptq/calibration/found_scales.h"
#include "ptq/calibration/model_weights.h"
#include "ptq/methods/transform.h"
#include "ptq/stream.h"

namespace nibble {

struct ScaleProblem {
  const Artifact& model;
  const Plan& plan;
  const CalibrationData& data;
  const StreamOptions& options;
  FoundScales& found;     // what an interrupted run knows is not searched
  ModelWeights& weights;  // gets the factors
  std::map<std::string, std::string>& notes;  // by tensor: what the ledger should say
};
void scale_groups(const Transform& transform, const ScaleProblem& problem);

}  // namespace nibble
