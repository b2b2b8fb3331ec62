#include "ptq/calibration/samples.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "kernels/program/batch_axis.h"
#include "ptq/error.h"
#include "ptq/module/program_module.h"

namespace nibble {
namespace {

constexpr int64_t kImagesPerSample = 16;

int64_t count_of(const Artifact& model, const CalibrationData& data) {
  if (model.program.is_language_model())
    return static_cast<int64_t>(data.sequences.size());
  if (!data.values.empty()) {
    const auto& [name, tensor] = *data.values.begin();
    for (const ProgramValue& input : model.program.inputs) {
      const int axis = batch_axis(input);
      if (input.name == name && axis >= 0)
        return tensor.shape.at(static_cast<size_t>(axis));
    }
    return 0;
  }
  return data.images.shape.empty() ? 0 : data.images.shape[0];
}

template <class... Parts>
Error failure(StatusCode code, const Parts&... parts) {
  return Error(error(code, "[calibrate] ", parts...));
}

// Every input that the net reads, with one batch.
void check_values(const Artifact& model, const CalibrationData& data, int64_t count) {
  for (const ProgramValue& input : model.program.inputs) {
    if (data.values.empty() || model.program.consumers(input.name).empty()) continue;
    const auto found = data.values.find(input.name);
    if (found == data.values.end()) {
      throw failure(StatusCode::failed_precondition, "data: input ", input.name,
                    " needs values; found none of this name; give every input that the "
                    "net reads");
    }
    std::vector<int64_t> wanted;
    for (const std::string& size : input.shape)
      wanted.push_back(is_open_size(size) ? count : std::stoll(size));
    if (found->second.shape != wanted) {
      throw failure(StatusCode::invalid_argument, "data: input ", input.name, " is ",
                    shape_text(wanted), " here; found ", shape_text(found->second.shape));
    }
  }
}

}  // namespace

void check_calibration_data(const Artifact& model, const Plan& plan,
                            const CalibrationData& data, const std::string& needed_by) {
  const bool text = model.program.is_language_model();
  const char* unit = text ? "sequences" : data.values.empty() ? "images" : "samples";
  const int64_t found = count_of(model, data);
  if (found == 0) {
    throw failure(StatusCode::failed_precondition, needed_by,
                  " needs calibration data; found none; give --calibration");
  }
  if (found < plan.calibration_sequences) {
    throw failure(StatusCode::failed_precondition, "data: ", plan.calibration_sequences,
                  " ", unit, " are planned; found ", found,
                  "; give more or set calibration_sequences=", found);
  }
  if (!text) return check_values(model, data, found);
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

at::Tensor view_of(const Tensor& values) {
  if (values.dtype != DType::f32) return to_torch(values);
  return at::from_blob(const_cast<std::byte*>(values.bytes.data()), values.shape,
                       at::kFloat);
}

int64_t sample_count(const Artifact& model, const Plan& plan) {
  const int64_t each = model.program.is_language_model() ? 1 : kImagesPerSample;
  return (plan.calibration_sequences + each - 1) / each;
}

std::vector<StreamValues> make_samples(const Artifact& model, const Plan& plan,
                                       const CalibrationData& data) {
  return make_samples(model, plan, data, 0, sample_count(model, plan));
}

std::vector<StreamValues> make_samples(const Artifact& model, const Plan& plan,
                                       const CalibrationData& data, int64_t first,
                                       int64_t last) {
  const Program& program = model.program;
  const std::string& input = program.inputs.at(0).name;
  std::vector<StreamValues> samples(static_cast<size_t>(sample_count(model, plan)));
  if (program.is_language_model()) {
    for (int64_t i = first; i < last; ++i) {
      const std::vector<int32_t>& ids = data.sequences[static_cast<size_t>(i)];
      at::Tensor tensor = at::empty({1, static_cast<int64_t>(ids.size())}, at::kLong);
      std::copy(ids.begin(), ids.end(), tensor.data_ptr<int64_t>());
      StreamValues& sample = samples[static_cast<size_t>(i)];
      // An encoder's token types: 0, one sequence alone.
      for (size_t j = 1; j < program.inputs.size(); ++j)
        sample[program.inputs[j].name] = at::zeros_like(tensor);
      sample[input] = std::move(tensor);
    }
    return samples;
  }
  std::map<std::string, std::pair<at::Tensor, int64_t>> values;  // with the batch's axis
  if (data.values.empty()) {
    values[input] = {view_of(data.images), 0};
  } else {
    for (const ProgramValue& value : program.inputs) {
      if (data.values.count(value.name))
        values[value.name] = {view_of(data.values.at(value.name)), batch_axis(value)};
    }
  }
  for (int64_t i = first; i < last; ++i) {
    const int64_t begin = i * kImagesPerSample;
    const int64_t count = std::min(kImagesPerSample, plan.calibration_sequences - begin);
    for (const auto& [name, value] : values)
      samples[static_cast<size_t>(i)][name] =
          value.first.narrow(value.second, begin, count);
  }
  return samples;
}

}  // namespace nibble
