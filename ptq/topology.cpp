#include "ptq/topology.h"

#include <algorithm>
#include <optional>

#include "kernels/program/layers.h"

namespace nibble {
namespace {

class Finder {
 public:
  Finder(const Program& program, const std::map<std::string, Tensor>& tensors)
      : program_(program), tensors_(tensors) {
    for (const Node& node : program.nodes) {
      for (const auto& [role, name] : node.parameters) ++named_[name];
    }
  }

  std::optional<ScaleGroup> group(const Node& maker) const {
    ScaleGroup group;
    group.value = maker.outputs.at(0);
    const Node* layer = absorber(maker);
    if (layer == nullptr || !add_makers(*layer, group)) return std::nullopt;
    group.convolution = layer->op == "conv2d";
    if (!add_readers(maker, group)) return std::nullopt;
    return group;
  }

 private:
  bool is_output(const std::string& value) const {
    return std::any_of(program_.outputs.begin(), program_.outputs.end(),
                       [&](const ProgramValue& out) { return out.name == value; });
  }
  bool is_sole_reader(const std::string& value) const {
    return program_.consumers(value).size() == 1 && !is_output(value);
  }
  // Named by one node only, and there.
  bool is_own(const std::string& tensor) const {
    const auto count = named_.find(tensor);
    return count != named_.end() && count->second == 1 && tensors_.count(tensor) > 0;
  }

  // The node whose tensors make the channels of the maker's value; null: none does.
  const Node* absorber(const Node& maker) const {
    const auto linear_before = [&](size_t input) -> const Node* {
      const std::string& value = maker.inputs.at(input);
      const Node* layer = program_.producer(value);
      const bool takes =
          layer != nullptr && (layer->op == "linear" || layer->op == "conv2d");
      return takes && is_sole_reader(value) ? layer : nullptr;
    };
    if (maker.op == "rms_norm") {
      return maker.attributes.count("head_dim") ? nullptr : &maker;
    }
    if (maker.op == "layer_norm" || maker.op == "linear" || maker.op == "conv2d") {
      return &maker;
    }
    if (maker.op == "attention") return linear_before(2);
    if (maker.op == "silu_mul") return linear_before(1);
    if (maker.op == "relu") return linear_before(0);
    return nullptr;
  }

  bool add_makers(const Node& node, ScaleGroup& group) const {
    for (const auto& [role, name] : node.parameters) {
      if (!is_own(name)) return false;
      group.makers.push_back(name);
    }
    group.channels = tensors_.at(node.parameter("weight")).rows();
    if (node.op == "rms_norm" || node.op == "layer_norm") {
      group.channels = tensors_.at(node.parameter("weight")).numel();
    }
    return true;
  }

  bool add_readers(const Node& maker, ScaleGroup& group) const {
    if (is_output(group.value)) return false;
    std::vector<const Node*> convolutions;
    for (const Node* reader : program_.consumers(group.value)) {
      if (reader->op == "conv2d" && reader->integer("groups", 1) == 1) {
        convolutions.push_back(reader);
      } else if (reader->op != "linear" && reader->op != "moe") {
        return false;
      }
      for (const Layer& layer : layers_of(*reader)) {
        // Of an expert's matrices down_proj reads what the node makes inside.
        if (layer.role.ends_with(".down_proj")) continue;
        if (!is_own(layer.tensor)) return false;
        group.readers.push_back(layer.tensor);
      }
    }
    if (group.readers.empty()) return false;
    const int64_t columns = tensors_.at(group.readers[0]).cols();
    for (const std::string& reader : group.readers) {
      if (tensors_.at(reader).cols() != columns) return false;
    }
    const int64_t times = columns / group.channels;
    if (times * group.channels != columns) return false;
    const int64_t head_dim = maker.op == "attention" ? maker.integer("head_dim", 0) : 0;
    if (times != 1 && head_dim == 0 && convolutions.empty()) return false;
    group.convolution = group.convolution || !convolutions.empty();
    for (int64_t j = 0; j < columns; ++j) {
      int64_t channel = j;
      if (!convolutions.empty()) channel = j / times;  // [c, kh, kw]
      if (head_dim > 0) channel = j / head_dim / times * head_dim + j % head_dim;
      group.channel_of_column.push_back(channel);
    }
    return true;
  }

  const Program& program_;
  const std::map<std::string, Tensor>& tensors_;
  std::map<std::string, int> named_;
};

}  // namespace

std::vector<ScaleGroup> scale_groups(const Program& program,
                                     const std::map<std::string, Tensor>& tensors) {
  const Finder finder(program, tensors);
  std::vector<ScaleGroup> groups;
  for (const Node& node : program.nodes) {
    if (auto group = finder.group(node)) groups.push_back(std::move(*group));
  }
  return groups;
}

Result<std::vector<ScaleGroup>> groups_to_scale(
    const std::string& transform, const Plan& plan, const Program& program,
    const std::map<std::string, Tensor>& tensors) {
  const bool smooths = transform == "smoothquant";
  std::vector<ScaleGroup> groups;
  if (!smooths && transform != "awq") return groups;
  for (ScaleGroup& group : scale_groups(program, tensors)) {
    const bool wanted =
        !group.convolution &&
        std::any_of(group.readers.begin(), group.readers.end(), [&](const auto& name) {
          const LayerPlan* layer = plan.find(name);
          return layer != nullptr && layer->method != "float" &&
                 (!smooths || layer->scheme.input.has_value());
        });
    if (wanted) groups.push_back(std::move(group));
  }
  // Samples stop where a value is first read: in that order.
  std::map<std::string, size_t> first;
  for (size_t i = 0; i < program.nodes.size(); ++i) {
    for (const std::string& input : program.nodes[i].inputs) first.emplace(input, i);
  }
  std::stable_sort(groups.begin(), groups.end(), [&](const auto& a, const auto& b) {
    return first.at(a.value) < first.at(b.value);
  });
  if (!smooths || !groups.empty()) return groups;
  return error(
      StatusCode::invalid_argument,
      "[smoothquant] a layer whose inputs are quantized, behind a norm or a layer "
      "that can take its factors, is required; found none; give the layers an "
      "input scheme (recipe w8a8-dynamic), or leave the transform out");
}

std::set<std::string> scaled_tensors(const Plan& plan, const Program& program,
                                     const std::map<std::string, Tensor>& tensors) {
  std::set<std::string> names;
  for (const std::string& transform : plan.transforms) {
    const auto groups = groups_to_scale(transform, plan, program, tensors);
    if (!groups.ok()) continue;
    for (const ScaleGroup& group : *groups) {
      names.insert(group.makers.begin(), group.makers.end());
      names.insert(group.readers.begin(), group.readers.end());
    }
  }
  return names;
}

bool feeds_a_relu_alone(const Program& program, const Node& node) {
  const std::string& value = node.outputs.at(0);
  const std::vector<const Node*> readers = program.consumers(value);
  return readers.size() == 1 && readers[0]->op == "relu" &&
         std::none_of(program.outputs.begin(), program.outputs.end(),
                      [&](const ProgramValue& output) { return output.name == value; });
}

}  // namespace nibble
