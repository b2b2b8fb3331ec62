#include "kernels/program/never_negative.h"

#include <algorithm>
#include <map>
#include <set>

namespace nibble {

bool never_negative(const Program& program, const std::string& value) {
  static const std::set<std::string> makes = {"relu", "sigmoid", "softmax", "sqrt"};
  static const std::set<std::string> keeps = {
      "shortcut_pad", "flatten",   "max_pool", "global_average_pool",
      "concat",       "reshape",   "slice",    "transpose",
      "reflect_pad",  "mean_pool", "add",      "mul"};
  // In execution order, so that a graph of any depth takes one pass.
  std::map<std::string, bool> known;
  for (const Node& node : program.nodes) {
    const auto read = [&](const std::string& input) { return known[input]; };
    const bool square = node.op == "mul" && node.inputs[0] == node.inputs[1];
    const bool result = makes.count(node.op) > 0 || square ||
                        (keeps.count(node.op) > 0 &&
                         std::all_of(node.inputs.begin(), node.inputs.end(), read));
    for (const std::string& output : node.outputs) known[output] = result;
    if (node.outputs.front() == value) return result;
  }
  return false;
}

}  // namespace nibble
