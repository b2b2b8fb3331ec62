#include "kernels/program/program.h"

#include <algorithm>
#include <set>

#include "kernels/program/layers.h"

namespace nibble {
namespace {

bool contains(const std::vector<std::string>& list, std::string_view item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

Status check_node(const Node& node, const std::set<std::string>& made,
                  const std::set<std::string>& states) {
  const OpInfo* op = find_op(node.op);
  if (op == nullptr) {
    std::string known;
    for (const OpInfo& row : all_ops()) known += cat(known.empty() ? "" : ", ", row.name);
    return error(StatusCode::unsupported, "[program] ", node.name,
                 ": the op must be one of ", known, "; found `", node.op,
                 "`; use a known op or add a row to ops.inc");
  }
  const int inputs = static_cast<int>(node.inputs.size());
  if (op->inputs < 0 ? inputs < -op->inputs : inputs != op->inputs) {
    return error(StatusCode::invalid_argument, "[program] ", node.name, ": ", node.op,
                 " reads ", std::abs(op->inputs), op->inputs < 0 ? " values or more" : " values",
                 "; found ", node.inputs.size());
  }
  if (node.outputs.size() != 1) {
    return error(StatusCode::invalid_argument, "[program] ", node.name,
                 ": a node makes one value; found ", node.outputs.size());
  }
  for (const std::string& input : node.inputs) {
    if (!made.count(input)) {
      return error(StatusCode::invalid_argument, "[program] ", node.name,
                   ": reads value `", input,
                   "`, which no program input or earlier node makes");
    }
  }
  for (const std::string& role : op->required_parameters) {
    if (node.parameter(role).empty()) {
      return error(StatusCode::invalid_argument, "[program] ", node.name, ": ", node.op,
                   " needs the parameter `", role, "`; found none");
    }
  }
  const std::vector<Layer> layers = layers_of(node);
  if (node.op == "moe" && (layers.empty() || layers.size() != node.parameters.size())) {
    return error(StatusCode::invalid_argument, "[program] ", node.name,
                 ": moe needs the attribute `experts` and the parameters <e>.gate_proj, "
                 "<e>.up_proj and <e>.down_proj of each; found ",
                 node.integer("experts", 0), " experts and ", node.parameters.size(),
                 " parameters");
  }
  for (const Layer& layer : layers) {
    if (!layer.tensor.empty()) continue;
    return error(StatusCode::invalid_argument, "[program] ", node.name, ": ", node.op,
                 " needs the parameter `", layer.role, "`; found none");
  }
  for (const auto& [role, tensor] : node.parameters) {
    if (node.op == "moe") break;  // just these, as counted
    if (!contains(op->required_parameters, role) &&
        !contains(op->optional_parameters, role)) {
      return error(StatusCode::invalid_argument, "[program] ", node.name, ": ", node.op,
                   " has no parameter `", role, "`; found it naming tensor `", tensor,
                   "`");
    }
  }
  const std::string state = node.text("state", "");
  if (!state.empty() && !states.count(state)) {
    return error(StatusCode::invalid_argument, "[program] ", node.name, ": uses state `",
                 state, "`, which the program does not declare");
  }
  return ok_status();
}

}  // namespace

const std::vector<OpInfo>& all_ops() {
  static const std::vector<OpInfo> ops = {
#define NIBBLE_OP(name, inputs, required, optional, is_layer) \
  {#name, inputs, required, optional, is_layer},
#include "kernels/program/ops.inc"
#undef NIBBLE_OP
  };
  return ops;
}

const OpInfo* find_op(std::string_view name) {
  for (const OpInfo& op : all_ops()) {
    if (name == op.name) return &op;
  }
  return nullptr;
}

int64_t Node::integer(std::string_view attribute, int64_t otherwise) const {
  const auto found = attributes.find(std::string(attribute));
  if (found == attributes.end()) return otherwise;
  const int64_t* value = std::get_if<int64_t>(&found->second);
  return value != nullptr ? *value : otherwise;
}

double Node::number(std::string_view attribute, double otherwise) const {
  const auto found = attributes.find(std::string(attribute));
  if (found == attributes.end()) return otherwise;
  if (const double* value = std::get_if<double>(&found->second)) return *value;
  if (const int64_t* value = std::get_if<int64_t>(&found->second)) {
    return static_cast<double>(*value);
  }
  return otherwise;
}

std::string Node::text(std::string_view attribute, std::string_view otherwise) const {
  const auto found = attributes.find(std::string(attribute));
  if (found == attributes.end()) return std::string(otherwise);
  const std::string* value = std::get_if<std::string>(&found->second);
  return value != nullptr ? *value : std::string(otherwise);
}

std::vector<int64_t> Node::integers(std::string_view attribute,
                                    std::vector<int64_t> otherwise) const {
  const auto found = attributes.find(std::string(attribute));
  if (found == attributes.end()) return otherwise;
  const auto* value = std::get_if<std::vector<int64_t>>(&found->second);
  return value != nullptr ? *value : otherwise;
}

const std::string& Node::parameter(const std::string& role) const {
  static const std::string none;
  const auto found = parameters.find(role);
  return found == parameters.end() ? none : found->second;
}

const Node* Program::find(std::string_view node_name) const {
  for (const Node& node : nodes) {
    if (node.name == node_name) return &node;
  }
  return nullptr;
}

bool Program::is_encoder() const {
  return vocabulary > 0 && std::any_of(nodes.begin(), nodes.end(), [](const Node& node) {
           return node.op == "attention" && node.integer("causal", 1) == 0;
         });
}

int Program::block_count() const {
  int count = 0;
  for (const Node& node : nodes) {
    if (node.block != kLastBlock) count = std::max(count, node.block + 1);
  }
  return count;
}

const Node* Program::producer(std::string_view value) const {
  for (const Node& node : nodes) {
    if (contains(node.outputs, value)) return &node;
  }
  return nullptr;
}

std::vector<const Node*> Program::consumers(std::string_view value) const {
  std::vector<const Node*> result;
  for (const Node& node : nodes) {
    if (contains(node.inputs, value)) result.push_back(&node);
  }
  return result;
}

Status check_program(const Program& program) {
  std::set<std::string> made, names, states;
  for (const ProgramValue& input : program.inputs) {
    if (!made.insert(input.name).second) {
      return error(StatusCode::invalid_argument, "[program] input `", input.name,
                   "`: names must be unique; found it twice");
    }
  }
  for (const ProgramState& state : program.states) {
    if (!states.insert(state.name).second) {
      return error(StatusCode::invalid_argument, "[program] state `", state.name,
                   "`: names must be unique; found it twice");
    }
  }
  int block = kFirstBlock;
  for (const Node& node : program.nodes) {
    NIBBLE_RETURN_IF_ERROR(check_node(node, made, states));
    if (!names.insert(node.name).second) {
      return error(StatusCode::invalid_argument, "[program] ", node.name,
                   ": node names must be unique; found it twice");
    }
    if (!made.insert(node.outputs[0]).second) {
      return error(StatusCode::invalid_argument, "[program] ", node.name,
                   ": makes value `", node.outputs[0], "`, which is already made");
    }
    const bool follows = node.block == block || node.block == block + 1 ||
                         (node.block == kLastBlock && block >= kFirstBlock);
    if (!follows || node.block < kFirstBlock) {
      return error(StatusCode::invalid_argument, "[program] ", node.name,
                   ": blocks must be in order and none empty; found block ", node.block,
                   " after block ", block);
    }
    block = node.block;
  }
  for (const ProgramValue& output : program.outputs) {
    if (!made.count(output.name)) {
      return error(StatusCode::invalid_argument, "[program] output `", output.name,
                   "`: no program input or node makes it");
    }
  }
  return ok_status();
}

BlockSlice slice(const Program& program, int block) {
  BlockSlice result;
  std::set<std::string> inside, read_outside;
  for (const Node& node : program.nodes) {
    if (node.block == block) {
      result.nodes.push_back(&node);
      for (const std::string& input : node.inputs) {
        if (!inside.count(input) && !contains(result.inputs, input)) {
          result.inputs.push_back(input);
        }
      }
      inside.insert(node.outputs.begin(), node.outputs.end());
    } else {
      read_outside.insert(node.inputs.begin(), node.inputs.end());
    }
  }
  for (const ProgramValue& output : program.outputs) read_outside.insert(output.name);
  for (const Node* node : result.nodes) {
    for (const std::string& output : node->outputs) {
      if (read_outside.count(output)) result.outputs.push_back(output);
    }
  }
  return result;
}

}  // namespace nibble
