// The sizes that ONNX operators make, and where they move values: rules that
// import_fold.h follows.
//
// A size is a number, kBatchSize or kNoSize (import_graph.h). A rule that cannot say all
// sizes says nothing. Allocates; safe from any thread.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "export/onnx/import_fold.h"

namespace onnx {
class NodeProto;
}

namespace nibble {

bool is_open(int64_t size);
bool is_known(const std::vector<int64_t>& sizes);

// The integers of a node's attribute, or of the i-th input that newer opsets have in its
// place; nothing where they do not follow.
using OnnxList = std::function<std::optional<std::vector<int64_t>>(
    const onnx::NodeProto& node, const char* name, int i)>;

// Of Gather (indices: one axis), Slice, Unsqueeze, Squeeze, Reshape, Transpose and
// Identity: value i of the result is value from[i] of the first input, whose sizes are
// all known.
struct MovedValues {
  std::vector<int64_t> shape, from;
};
std::optional<MovedValues> move_onnx_values(const onnx::NodeProto& node,
                                            const std::vector<int64_t>& shape,
                                            const OnnxList& list);

// What Slice takes of each axis: start, start + step .. (count values).
struct OnnxRange {
  int64_t start = 0, step = 1, count = 0;
};
std::optional<std::vector<OnnxRange>> onnx_ranges(const onnx::NodeProto& slice,
                                                  const std::vector<int64_t>& shape,
                                                  const OnnxList& list);
std::optional<std::vector<int64_t>> sliced_onnx_shape(const onnx::NodeProto& slice,
                                                      const std::vector<int64_t>& shape,
                                                      const OnnxList& list);

// Adds the sizes of what the node makes, where its inputs' are in `shapes`.
void infer_onnx_shapes(const onnx::NodeProto& node, const OnnxList& list,
                       OnnxShapes& shapes);

}  // namespace nibble
