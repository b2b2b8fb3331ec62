#include "recipes/torch/calibration.h"

#include "recipes/eval/model_data.h"

namespace nibble {

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
  if (data.is_text()) {
    calibration.sequences.assign(
        data.sequences.begin(),
        data.sequences.begin() + static_cast<std::ptrdiff_t>(split.sequences));
  } else {
    calibration.images = image_batch(model, data.images, 0, split.sequences);
  }
  calibration.description = data.description;
  if (data.count() > split.sequences) {
    calibration.description += cat("; the first ", split.sequences,
                                   data.is_text() ? " sequences" : " images");
  }
  return calibration;
}

}  // namespace nibble
