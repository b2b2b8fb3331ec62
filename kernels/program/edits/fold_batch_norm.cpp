#include "kernels/program/edits/fold_batch_norm.h"

#include <cmath>

namespace nibble {
namespace {

Result<std::vector<float>> floats_of(const std::map<std::string, Tensor>& tensors,
                                     const std::string& name, int64_t count) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    return error(StatusCode::not_found, "[fold_batch_norm] ", name,
                 ": this tensor is needed; the model has none of that name");
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<float> values, to_float(found->second));
  if (count >= 0 && static_cast<int64_t>(values.size()) != count) {
    return error(StatusCode::invalid_argument, "[fold_batch_norm] ", name, ": needs ",
                 count, " values, one an output channel; found ", values.size());
  }
  return values;
}

int uses(const Program& program, const std::string& tensor) {
  int count = 0;
  for (const Node& node : program.nodes) {
    for (const auto& [role, name] : node.parameters) count += name == tensor;
  }
  return count;
}

bool can_fold(const Program& program, const Node& layer, const Node& norm) {
  if (layer.op != "conv2d" && layer.op != "linear") return false;
  if (program.consumers(layer.outputs[0]).size() != 1) return false;
  for (const ProgramValue& output : program.outputs) {
    if (output.name == layer.outputs[0]) return false;
  }
  for (const auto& [role, tensor] : layer.parameters) {
    if (uses(program, tensor) != 1) return false;
  }
  for (const auto& [role, tensor] : norm.parameters) {
    if (uses(program, tensor) != 1) return false;
  }
  return true;
}

Status fold(Node& layer, const Node& norm, FoldedModel& model) {
  std::map<std::string, Tensor>& tensors = model.tensors;
  const std::string& weight_name = layer.parameter("weight");
  NIBBLE_ASSIGN_OR_RETURN(std::vector<float> weight, floats_of(tensors, weight_name, -1));
  const std::vector<int64_t> shape = tensors[weight_name].shape;
  const int64_t channels = tensors[weight_name].rows();
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> gamma,
                          floats_of(tensors, norm.parameter("weight"), channels));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> beta,
                          floats_of(tensors, norm.parameter("bias"), channels));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> mean,
                          floats_of(tensors, norm.parameter("running_mean"), channels));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> variance,
                          floats_of(tensors, norm.parameter("running_var"), channels));
  std::vector<float> bias(static_cast<size_t>(channels), 0.0f);
  if (layer.parameter("bias").empty()) {
    const std::string name = layer.name + ".bias";
    if (tensors.count(name)) {
      return error(
          StatusCode::invalid_argument, "[fold_batch_norm] ", name,
          ": the folded bias needs this name; the model has a tensor of it already");
    }
    layer.parameters["bias"] = name;
  } else {
    NIBBLE_ASSIGN_OR_RETURN(bias, floats_of(tensors, layer.parameter("bias"), channels));
  }

  const double epsilon = norm.number("epsilon", 0);
  const size_t cols = channels == 0 ? 0 : weight.size() / static_cast<size_t>(channels);
  for (size_t o = 0; o < static_cast<size_t>(channels); ++o) {
    const double spread = static_cast<double>(variance[o]) + epsilon;
    if (!(spread > 0)) {
      return error(StatusCode::out_of_range, "[fold_batch_norm] ",
                   norm.parameter("running_var"),
                   ": running_var + epsilon must be positive; ", "found ", spread,
                   " at channel ", o);
    }
    const double g = gamma[o] / std::sqrt(spread);
    for (size_t c = 0; c < cols; ++c) {
      weight[o * cols + c] = static_cast<float>(weight[o * cols + c] * g);
    }
    bias[o] = static_cast<float>((static_cast<double>(bias[o]) - mean[o]) * g + beta[o]);
  }
  const std::string& bias_name = layer.parameter("bias");
  tensors[weight_name] = make_tensor(shape, std::span<const float>(weight));
  tensors[bias_name] = make_tensor({channels}, std::span<const float>(bias));
  for (const char* role : {"weight", "bias", "running_mean", "running_var"}) {
    const std::string& name = norm.parameter(role);
    const bool scales =
        std::string(role) == "weight" || std::string(role) == "running_var";
    model.folded.push_back({name, scales ? weight_name : bias_name, channels});
    tensors.erase(name);
  }
  layer.outputs = norm.outputs;
  return ok_status();
}

}  // namespace

Result<FoldedModel> fold_batch_norm(const Program& program,
                                    const std::map<std::string, Tensor>& tensors) {
  NIBBLE_RETURN_IF_ERROR(check_program(program));
  FoldedModel model{program, tensors, {}};
  model.program.nodes.clear();
  for (const Node& node : program.nodes) {
    if (node.op == "batch_norm") {
      const Node* before = program.producer(node.inputs[0]);
      if (before != nullptr && can_fold(program, *before, node)) {
        // The layer was copied already: find it in the new list.
        for (Node& layer : model.program.nodes) {
          if (layer.name == before->name) {
            NIBBLE_RETURN_IF_ERROR(fold(layer, node, model));
          }
        }
        continue;
      }
    }
    model.program.nodes.push_back(node);
  }
  NIBBLE_RETURN_IF_ERROR(check_program(model.program));
  return model;
}

}  // namespace nibble
