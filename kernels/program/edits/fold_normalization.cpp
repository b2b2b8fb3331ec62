#include "kernels/program/edits/fold_normalization.h"

#include <algorithm>

namespace nibble {
namespace {

template <class... Parts>
Status refuse(const Parts&... parts) {
  return error(StatusCode::failed_precondition, "[fold_normalization] ", parts...);
}

bool is_identity(const std::vector<float>& mean, const std::vector<float>& std) {
  return std::all_of(mean.begin(), mean.end(), [](float m) { return m == 0; }) &&
         std::all_of(std.begin(), std.end(), [](float s) { return s == 1; });
}

}  // namespace

Status fold_normalization(Program& program, std::map<std::string, Tensor>& tensors,
                          const std::vector<float>& mean, const std::vector<float>& std) {
  if (is_identity(mean, std)) return ok_status();
  const std::string& image = program.inputs.at(0).name;
  const std::vector<const Node*> readers = program.consumers(image);
  if (readers.size() != 1 || readers[0]->op != "conv2d" ||
      readers[0]->integer("groups", 1) != 1) {
    return refuse(
        image, ": images that one convolution of one group reads are required; ",
        "found ", readers.size(), " readers",
        readers.empty() ? "" : cat(", the first ", readers[0]->op, " ", readers[0]->name),
        "; leave activations.images normalized");
  }
  Node& layer = *std::find_if(program.nodes.begin(), program.nodes.end(),
                              [&](const Node& node) { return &node == readers[0]; });
  for (const int64_t padding : layer.integers("padding", {0, 0})) {
    if (padding == 0) continue;
    return refuse(layer.name, ": a first convolution that does not pad is required (its ",
                  "zeros stand for the mean's pixel); found padding ", padding,
                  "; leave activations.images normalized");
  }
  const std::string& weight_name = layer.parameter("weight");
  const auto weight_tensor = tensors.find(weight_name);
  if (weight_tensor == tensors.end() || weight_tensor->second.shape.size() != 4) {
    return refuse(weight_name, ": a float weight [o, c, kh, kw] is required; found none");
  }
  const std::vector<int64_t> shape = weight_tensor->second.shape;
  const auto channels = static_cast<size_t>(shape[1]);
  if ((!mean.empty() && mean.size() != channels) ||
      (!std.empty() && std.size() != channels)) {
    return refuse(layer.name, ": a mean and a deviation for each of ", channels,
                  " channels are required; found ", mean.size(), " and ", std.size());
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<float> weight, to_float(weight_tensor->second));
  std::vector<float> bias(static_cast<size_t>(shape[0]), 0.0f);
  std::string bias_name = layer.parameter("bias");
  if (bias_name.empty()) {
    bias_name = layer.name + ".bias";
    if (tensors.count(bias_name)) {
      return refuse(bias_name, ": the name of the new bias must be free; found it taken");
    }
  } else {
    const auto found = tensors.find(bias_name);
    if (found == tensors.end())
      return refuse(bias_name, ": a bias is required; found none");
    NIBBLE_ASSIGN_OR_RETURN(bias, to_float(found->second));
  }
  const auto plane = static_cast<size_t>(shape[2] * shape[3]);
  for (size_t o = 0; o < bias.size(); ++o) {
    double moved = bias[o];
    for (size_t c = 0; c < channels; ++c) {
      for (size_t k = 0; k < plane; ++k) {
        float& w = weight[(o * channels + c) * plane + k];
        const double scaled = w / (std.empty() ? 1.0 : std[c]);
        moved -= scaled * (mean.empty() ? 0.0 : mean[c]);
        w = static_cast<float>(scaled);
      }
    }
    bias[o] = static_cast<float>(moved);
  }
  tensors[weight_name] = make_tensor(shape, weight);
  tensors[bias_name] = make_tensor({shape[0]}, bias);
  layer.parameters["bias"] = bias_name;
  return ok_status();
}

}  // namespace nibble
