#include "kernels/program/layers.h"

#include <algorithm>

namespace nibble {

std::vector<Layer> layers_of(const Node& node) {
  std::vector<Layer> layers;
  const OpInfo* info = find_op(node.op);
  if (info != nullptr && info->is_layer) {
    layers.push_back({&node, "weight", node.name, node.parameter("weight")});
  }
  if (node.op == "lstm") {
    for (const char* role : {"weight_ih", "weight_hh"}) {
      layers.push_back({&node, role, cat(node.name, ".", role), node.parameter(role)});
    }
  }
  if (node.op != "moe") return layers;
  // No more than there are parameters: the attribute may be anything.
  const int64_t most = static_cast<int64_t>(node.parameters.size());
  for (int64_t e = 0; e < std::min(node.integer("experts", 0), most); ++e) {
    for (const char* part : {"gate_proj", "up_proj", "down_proj"}) {
      const std::string role = cat(e, ".", part);
      layers.push_back({&node, role, cat(node.name, ".", role), node.parameter(role)});
    }
  }
  return layers;
}

std::vector<Layer> layers_of(const Program& program) {
  std::vector<Layer> all;
  for (const Node& node : program.nodes) {
    for (Layer& layer : layers_of(node)) all.push_back(std::move(layer));
  }
  return all;
}

const Node* owner_of(const Program& program, const std::string& layer) {
  for (const Node& node : program.nodes) {
    for (const Layer& each : layers_of(node)) {
      if (each.name == layer) return &node;
    }
  }
  return nullptr;
}

std::string reader_layer(const Node& node) {
  const bool reads = node.op == "linear" || node.op == "conv2d" || node.op == "lstm";
  return reads ? layers_of(node).front().name : std::string();
}

}  // namespace nibble
