#include "kernels/program/edits/untie.h"

#include <set>

namespace nibble {

Result<UntiedModel> untie(const Program& program,
                          const std::map<std::string, Tensor>& tensors) {
  NIBBLE_RETURN_IF_ERROR(check_program(program));
  UntiedModel model{program, tensors, {}};
  std::set<std::string> owned;
  for (Node& node : model.program.nodes) {
    if (!find_op(node.op)->is_layer) continue;
    std::string& weight = node.parameters["weight"];
    if (owned.insert(weight).second) continue;
    const std::string name = node.name + ".weight";
    const auto tied = tensors.find(weight);
    if (tied == tensors.end()) {
      return error(StatusCode::not_found, "[untie] ", weight, ": node ", node.name,
                   " names this tensor; the model has none of that name");
    }
    if (!model.tensors.emplace(name, tied->second).second) {
      return error(StatusCode::invalid_argument, "[untie] ", node.name,
                   ": its own weight must be called ", name,
                   "; the model has a tensor of that name already");
    }
    weight = name;
    owned.insert(name);
    model.added.push_back(name);
  }
  return model;
}

}  // namespace nibble
