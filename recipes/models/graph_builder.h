// Adds the nodes of a model to a Program, each making one value, called as the node
// unless said otherwise.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/program/program.h"

namespace nibble {

class GraphBuilder {
 public:
  explicit GraphBuilder(Program& program) : program_(program) {}
  void set_block(int block) { block_ = block; }

  // Returns the value's name.
  std::string add(const char* op, const std::string& name,
                  std::vector<std::string> inputs,
                  std::map<std::string, std::string> parameters = {},
                  std::map<std::string, Attribute> attributes = {},
                  std::string output = "") {
    if (output.empty()) output = name;
    program_.nodes.push_back({op,
                              name,
                              block_,
                              std::move(inputs),
                              {output},
                              std::move(parameters),
                              std::move(attributes)});
    return output;
  }
  std::string linear(const std::string& name, const std::string& input, int64_t rows,
                     bool bias) {
    std::map<std::string, std::string> parameters = {{"weight", name + ".weight"}};
    if (bias) parameters["bias"] = name + ".bias";
    return add("linear", name, {input}, parameters, {{"out_features", rows}});
  }

 protected:
  Program& program_;
  int block_ = kFirstBlock;
};

}  // namespace nibble
