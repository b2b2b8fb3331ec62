// What part of the data a method sees, and what is left for the report.
#pragma once

#include "kernels/base/cancel.h"
#include "ptq/calibrate.h"
#include "recipes/torch/run_parts.h"

namespace nibble {

struct CalibrationSplit {
  int64_t sequences = 0;  // or images: the first so many; or samples, evenly spaced
};

// As many as the recipe plans, or all where there are fewer (plan is adjusted, a note
// says it).
CalibrationSplit split_calibration(const Recipe& recipe, const RunData& data, Plan& plan,
                                   std::vector<std::string>& notes);

CalibrationData calibration_data(const Artifact& model, const RunData& data,
                                 const CalibrationSplit& split);

}  // namespace nibble
