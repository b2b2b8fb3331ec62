// Batches for the trainer: the same for the same seed, epoch and index, so that a resumed
// run sees what an uninterrupted one would have seen.
//
//   text    input ids[0 .. n-1), target ids[1 .. n), rows padded to the longest (target
//   -100) images  shifted by up to 4 pixels (black comes in), colour images mirrored half
//   the time,
//           mixed in pairs where data.mixup says so (the target is then no label: what
//           the teacher says of the mixed image is), then preprocessed as the model wants
//           it
//
//   signals windows of data.window steps of a stream, or samples; outputs should be the
//           data's targets and the teacher's outputs (data.seen) as distill.weight mixes
//           them, (1 - w) target + w teacher, whose squared error has the same gradient
//           as both; where there is no target the teacher's alone
//
// Each epoch is a permutation of the data; what does not fill the last batch is left to
// the next epoch's order.
#pragma once

#include "qat/trainer.h"
#include "recipes/torch/run_parts.h"

namespace nibble {

// data and model must outlive the result.
TrainingData make_training_data(const Artifact& model, const RunData& data,
                                const TrainOptions& options, const Recipe& recipe);

}  // namespace nibble
