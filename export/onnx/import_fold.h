// What an ONNX graph computes of constants and sizes alone, resolved before its operators
// become a Program's nodes.
//
// Constants are followed through arithmetic and moves, sizes through every operator whose
// rule is here; an `If` whose condition follows gives way to its branch; a slice that
// takes all and a sum with zeros become Identity; nodes that no output needs are left
// out. What does not follow stays as it is.
//
// The batch stays open: it is the first size of the first input with sizes (or what has
// its name); other open sizes, and integer inputs, are given by name in `given`.
//
// invalid_argument: a given name is none of these. data_loss, unsupported: a constant of
// a branch cannot be read. Allocates; safe from any thread.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/base/tensor.h"

namespace onnx {
class GraphProto;
}

namespace nibble {

// Sizes of a value by its name; kBatchSize and kNoSize (import_graph.h) are open ones.
using OnnxShapes = std::map<std::string, std::vector<int64_t>>;

// constants: the graph's initializers, which those that were computed join. folded:
// receives the nodes that stay.
Result<OnnxShapes> fold_graph(const onnx::GraphProto& graph,
                              const std::filesystem::path& directory,
                              const std::map<std::string, int64_t>& given,
                              std::map<std::string, Tensor>& constants,
                              onnx::GraphProto& folded);

}  // namespace nibble
