// What an ONNX file says of itself before anything is read into a Program: what goes in
// and comes out, with sizes that are still symbols, its operators and its weights.
//
// data_loss: no ONNX model. Allocates; safe from any thread.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

struct OnnxEnd {
  std::string name, type;          // "F32", "I64" ...
  std::vector<std::string> shape;  // numbers or symbols; "?" where it has neither
};
struct OnnxEnds {
  std::vector<OnnxEnd> inputs, outputs;         // inputs that are no initializers
  std::map<std::string, int64_t> operators;     // nodes by operator, of the graph itself
  int64_t opset = 0, weights = 0;               // values of float initializers
  std::vector<std::string> open_sizes() const;  // symbols of inputs, each once
};
Result<OnnxEnds> read_onnx_ends(const std::filesystem::path& file);

}  // namespace nibble
