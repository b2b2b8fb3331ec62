#include "kernels/program/edits/scale_channels.h"

#include <cmath>

namespace nibble {
namespace {

template <class... Parts>
Status refuse(StatusCode code, const Parts&... parts) {
  return error(code, "[scale_channels] ", parts...);
}

}  // namespace

void divide_rows(std::span<float> values, const ChannelScaling& scaling) {
  const size_t each = values.size() / scaling.scale.size();
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(values[i] / scaling.scale[i / each]);
}

void multiply_columns(std::span<float> values, const ChannelScaling& scaling) {
  const size_t columns = scaling.channel_of_column.size();
  std::vector<double> factors(columns);
  for (size_t c = 0; c < columns; ++c)
    factors[c] = scaling.scale[static_cast<size_t>(scaling.channel_of_column[c])];
  for (size_t row = 0; row < values.size(); row += columns) {
    for (size_t c = 0; c < columns; ++c)
      values[row + c] = static_cast<float>(values[row + c] * factors[c]);
  }
}

Status check_scaling(const ChannelScaling& scaling,
                     const std::map<std::string, Tensor>& tensors) {
  const auto channels = static_cast<int64_t>(scaling.scale.size());
  for (size_t c = 0; c < scaling.scale.size(); ++c) {
    const double factor = scaling.scale[c];
    if (factor > 0 && std::isfinite(factor)) continue;
    return refuse(StatusCode::invalid_argument, "channel ", c,
                  ": a finite, positive factor is required; found ", factor);
  }
  for (const int64_t channel : scaling.channel_of_column) {
    if (channel >= 0 && channel < channels) continue;
    return refuse(StatusCode::invalid_argument, "a column's channel must be below ",
                  channels, "; found ", channel);
  }
  for (const auto* names : {&scaling.makers, &scaling.readers}) {
    for (const std::string& name : *names) {
      const auto found = tensors.find(name);
      if (found == tensors.end()) {
        return refuse(StatusCode::not_found, name,
                      ": a float tensor is required; found none");
      }
      const std::vector<int64_t>& shape = found->second.shape;
      const bool makes = names == &scaling.makers;
      if (makes ? !shape.empty() && shape[0] == channels
                : found->second.cols() ==
                      static_cast<int64_t>(scaling.channel_of_column.size())) {
        continue;
      }
      return refuse(
          StatusCode::invalid_argument, name, ": ",
          makes ? channels : static_cast<int64_t>(scaling.channel_of_column.size()),
          makes ? " rows" : " columns", " are required; found ", shape_text(shape));
    }
  }
  return ok_status();
}

Status scale_channels(const ChannelScaling& scaling,
                      std::map<std::string, Tensor>& tensors) {
  NIBBLE_RETURN_IF_ERROR(check_scaling(scaling, tensors));
  std::map<std::string, Tensor> changed;
  for (const auto* names : {&scaling.makers, &scaling.readers}) {
    for (const std::string& name : *names) {
      const Tensor& tensor = tensors.at(name);
      NIBBLE_ASSIGN_OR_RETURN(std::vector<float> values, to_float(tensor));
      if (names == &scaling.makers) {
        divide_rows(values, scaling);
      } else {
        multiply_columns(values, scaling);
      }
      changed[name] = make_tensor(tensor.shape, values);
    }
  }
  for (auto& [name, tensor] : changed) tensors[name] = std::move(tensor);
  return ok_status();
}

}  // namespace nibble
