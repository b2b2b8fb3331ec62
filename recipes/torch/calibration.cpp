#include "recipes/torch/calibration.h"

#include "kernels/program/batch_axis.h"
#include "ptq/error.h"
#include "recipes/eval/model_data.h"
#include "recipes/eval/signal_quality.h"

namespace nibble {
namespace {

// Samples evenly spaced over the set, so that a stream's whole course is seen; states are
// the float model's own.
void add_signals(const Artifact& model, const SignalSet& set, int64_t count,
                 CalibrationData& calibration) {
  UnrolledSignals seen;
  if (set.is_stream()) {
    Executor net =
        value_or_throw(Executor::create(std::make_shared<const Artifact>(model), {}));
    seen = value_or_throw(unroll(net, set, {}));
  }
  std::vector<int64_t> picks;
  for (int64_t i = 0; i < count; ++i) picks.push_back(i * set.count() / count);
  for (const ProgramValue& input : model.program.inputs) {
    const SignalRows& rows = seen.states.count(input.name) ? seen.states : set.inputs;
    const auto found = rows.find(input.name);
    if (found == rows.end()) continue;
    calibration.values[input.name] = make_tensor(
        batch_shape(input, count), rows_to_batch(input, found->second, picks));
  }
  // One input whose batch comes first is what images are.
  const ProgramValue& first = model.program.inputs.front();
  if (model.program.inputs.size() == 1 && batch_axis(first) == 0) {
    calibration.images = std::move(calibration.values.at(first.name));
    calibration.values.clear();
  }
}

}  // namespace

CalibrationSplit split_calibration(const Recipe& recipe, const RunData& data, Plan& plan,
                                   std::vector<std::string>& notes) {
  CalibrationSplit split;
  if (data.count() == 0 || !recipe.needs_calibration()) return split;
  split.sequences = std::min(recipe.calibration_sequences, data.count());
  if (split.sequences < recipe.calibration_sequences) {
    notes.push_back(cat("calibration.sequences ", recipe.calibration_sequences,
                        " planned, ", split.sequences, " there are: all are used"));
  }
  plan.calibration_sequences = split.sequences;
  return split;
}

CalibrationData calibration_data(const Artifact& model, const RunData& data,
                                 const CalibrationSplit& split) {
  CalibrationData calibration;
  if (data.count() == 0) return calibration;
  if (data.is_signals()) {
    add_signals(model, data.signals, split.sequences, calibration);
  } else if (data.is_text()) {
    calibration.sequences.assign(
        data.sequences.begin(),
        data.sequences.begin() + static_cast<std::ptrdiff_t>(split.sequences));
  } else {
    calibration.images = image_batch(model, data.images, 0, split.sequences);
  }
  calibration.description = data.description;
  if (data.count() > split.sequences) {
    calibration.description +=
        cat(data.is_signals() ? "; evenly spaced " : "; the first ", split.sequences, " ",
            data.unit());
  }
  return calibration;
}

}  // namespace nibble
