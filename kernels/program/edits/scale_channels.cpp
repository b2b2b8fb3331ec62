#include "kernels/program/edits/scale_channels.h"

#include <cmath>

namespace nibble {
namespace {

template <class... Parts>
Status refuse(StatusCode code, const Parts&... parts) {
  return error(code, "[scale_channels] ", parts...);
}

Result<std::vector<float>> values_of(const std::map<std::string, Tensor>& tensors,
                                     const std::string& name) {
  const auto found = tensors.find(name);
  if (found != tensors.end()) return to_float(found->second);
  return refuse(StatusCode::not_found, name, ": a float tensor is required; found none");
}

}  // namespace

Status scale_channels(const ChannelScaling& scaling,
                      std::map<std::string, Tensor>& tensors) {
  const std::vector<double>& scale = scaling.scale;
  for (size_t c = 0; c < scale.size(); ++c) {
    if (scale[c] > 0 && std::isfinite(scale[c])) continue;
    return refuse(StatusCode::invalid_argument, "channel ", c,
                  ": a finite, positive factor is required; found ", scale[c]);
  }
  for (const int64_t channel : scaling.channel_of_column) {
    if (channel >= 0 && channel < static_cast<int64_t>(scale.size())) continue;
    return refuse(StatusCode::invalid_argument, "a column's channel must be below ",
                  scale.size(), "; found ", channel);
  }
  std::map<std::string, Tensor> changed;
  for (const std::string& name : scaling.makers) {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<float> values, values_of(tensors, name));
    const Tensor& tensor = tensors.at(name);
    if (tensor.shape.empty() || tensor.shape[0] != static_cast<int64_t>(scale.size())) {
      return refuse(StatusCode::invalid_argument, name, ": ", scale.size(),
                    " rows are required; found ", shape_text(tensor.shape));
    }
    const size_t each = values.size() / scale.size();
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(values[i] / scale[i / each]);
    }
    changed[name] = make_tensor(tensor.shape, values);
  }
  const size_t columns = scaling.channel_of_column.size();
  for (const std::string& name : scaling.readers) {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<float> values, values_of(tensors, name));
    const Tensor& tensor = tensors.at(name);
    if (tensor.cols() != static_cast<int64_t>(columns)) {
      return refuse(StatusCode::invalid_argument, name, ": ", columns,
                    " columns are required; found ", shape_text(tensor.shape));
    }
    for (size_t i = 0; i < values.size(); ++i) {
      const auto channel = static_cast<size_t>(scaling.channel_of_column[i % columns]);
      values[i] = static_cast<float>(values[i] * scale[channel]);
    }
    changed[name] = make_tensor(tensor.shape, values);
  }
  for (auto& [name, tensor] : changed) tensors[name] = std::move(tensor);
  return ok_status();
}

}  // namespace nibble
