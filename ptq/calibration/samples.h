// The calibration data as the samples that a ValueStream moves.
#pragma once

#include <string>
#include <vector>

#include "ptq/calibrate.h"
#include "ptq/calibration/value_stream.h"

namespace nibble {

// Samples that run side by side before their statistics are added. Fixed, so that sums
// are the same at any thread count; more of them only cost memory.
inline constexpr int64_t kRound = 8;

// A language model's sequences, one a sample (an encoder's token types 0), or images or
// rows of a net's inputs, 16 a sample: as many as the plan says.
int64_t sample_count(const Artifact& model, const Plan& plan);
std::vector<StreamValues> make_samples(const Artifact& model, const Plan& plan,
                                       const CalibrationData& data);
// Of the samples outside of [first, last) only the place.
std::vector<StreamValues> make_samples(const Artifact& model, const Plan& plan,
                                       const CalibrationData& data, int64_t first,
                                       int64_t last);

// f32 values of the data where they lie, which outlive the tensor; others as to_torch.
at::Tensor view_of(const Tensor& values);

// At least as many sequences (images) as the plan says, each of a length and of ids that
// the model takes. needed_by: who asks, for the message when there is no data at all.
// Throws nibble::Error.
void check_calibration_data(const Artifact& model, const Plan& plan,
                            const CalibrationData& data, const std::string& needed_by);

}  // namespace nibble
