#include "ptq/calibration/samples.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "ptq/error.h"
#include "ptq/module/program_module.h"

namespace nibble {
namespace {

constexpr int64_t kImagesPerSample = 16;

template <class... Parts>
Error failure(StatusCode code, const Parts&... parts) {
  return Error(error(code, "[calibrate] ", parts...));
}

}  // namespace

void check_calibration_data(const Artifact& model, const Plan& plan,
                            const CalibrationData& data, const std::string& needed_by) {
  const bool text = model.program.is_language_model();
  const char* unit = text ? "sequences" : "images";
  const int64_t found = text ? static_cast<int64_t>(data.sequences.size())
                             : (data.images.shape.empty() ? 0 : data.images.shape[0]);
  if (found == 0) {
    throw failure(StatusCode::failed_precondition, needed_by,
                  " needs calibration data; found none; give --calibration");
  }
  if (found < plan.calibration_sequences) {
    throw failure(StatusCode::failed_precondition, "data: ", plan.calibration_sequences,
                  " ", unit, " are planned; found ", found,
                  "; give more or set calibration_sequences=", found);
  }
  if (!text) return;
  for (int64_t i = 0; i < plan.calibration_sequences; ++i) {
    const std::vector<int32_t>& ids = data.sequences[static_cast<size_t>(i)];
    if (ids.empty() || static_cast<int64_t>(ids.size()) > plan.calibration_length) {
      throw failure(StatusCode::invalid_argument, "data: sequence ", i,
                    " must have 1 to ", plan.calibration_length, " ids; found ",
                    ids.size());
    }
    for (const int32_t id : ids) {
      if (id < 0 || id >= model.program.vocabulary) {
        throw failure(StatusCode::out_of_range, "data: sequence ", i,
                      " must have ids below ", model.program.vocabulary, "; found ", id,
                      "; is it another tokenizer's?");
      }
    }
  }
}

std::vector<ValueStream::Values> make_samples(const Artifact& model, const Plan& plan,
                                              const CalibrationData& data) {
  const std::string& input = model.program.inputs.at(0).name;
  std::vector<ValueStream::Values> samples;
  if (model.program.is_language_model()) {
    for (int64_t i = 0; i < plan.calibration_sequences; ++i) {
      const std::vector<int32_t>& ids = data.sequences[static_cast<size_t>(i)];
      at::Tensor tensor = at::empty({1, static_cast<int64_t>(ids.size())}, at::kLong);
      std::copy(ids.begin(), ids.end(), tensor.data_ptr<int64_t>());
      ValueStream::Values sample = {{input, tensor}};
      // An encoder's token types: 0, one sequence alone.
      for (size_t j = 1; j < model.program.inputs.size(); ++j) {
        sample[model.program.inputs[j].name] = at::zeros_like(tensor);
      }
      samples.push_back(std::move(sample));
    }
    return samples;
  }
  const at::Tensor images = to_torch(data.images);
  for (int64_t i = 0; i < plan.calibration_sequences; i += kImagesPerSample) {
    const int64_t count = std::min(kImagesPerSample, plan.calibration_sequences - i);
    samples.push_back({{input, images.narrow(0, i, count)}});
  }
  return samples;
}

at::Tensor gather_rows(const ValueStream& stream, const std::string& value, int64_t first,
                       int64_t last) {
  std::vector<at::Tensor> rows;
  for (int64_t sample = first; sample < last; ++sample) {
    const at::Tensor& x = stream.value(sample, value);
    rows.push_back(x.reshape({-1, x.size(-1)}));
  }
  return at::cat(rows);
}

}  // namespace nibble
