// One ONNX graph on its way into a Program: what import.cpp's walk and import_rows.cpp's
// operators share.
#pragma once

#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "export/onnx/import.h"
#include "export/onnx/import_fold.h"

namespace onnx {
class AttributeProto;
class GraphProto;
class ModelProto;
class NodeProto;
}  // namespace onnx

namespace nibble {

// In a folded shape: the batch, and a size that is not known here.
inline constexpr int64_t kBatchSize = std::numeric_limits<int64_t>::min();
inline constexpr int64_t kNoSize = kBatchSize + 1;

// [rows, cols] -> [cols, rows], whatever its elements are.
Tensor transposed(const Tensor& tensor);

class Import {
 public:
  using Sizes = std::vector<int64_t>;
  using NodeProto = onnx::NodeProto;

  Import(std::filesystem::path directory, std::map<std::string, int64_t> given)
      : directory_(std::move(directory)), given_(std::move(given)) {}
  Result<ImportedGraph> run(const onnx::ModelProto& model);

  // --- what a node says
  static std::string name_of(const NodeProto& node);
  static const onnx::AttributeProto* attribute(const NodeProto& node, const char* name);
  static int64_t integer(const NodeProto& node, const char* name, int64_t otherwise);
  static float number(const NodeProto& node, const char* name, float otherwise);
  static Sizes integers(const NodeProto& node, const char* name, Sizes otherwise);
  static bool has_input(const NodeProto& node, int i);

 private:
  Status add_constants(const onnx::GraphProto& graph);
  Status add_inputs(const onnx::GraphProto& graph, const onnx::GraphProto& folded);
  Status run_nodes(const onnx::GraphProto& graph);
  Status run_node(const NodeProto& node);
  Status finish(const onnx::GraphProto& graph);

  // --- operators
  Status conv(const NodeProto& node);
  Status batch_norm(const NodeProto& node);
  Status pool(const NodeProto& node);
  Status reduce_mean(const NodeProto& node);
  Status average(const NodeProto& node, bool keeps_axes);
  Status concat(const NodeProto& node);
  Status add(const NodeProto& node);
  Status gemm(const NodeProto& node);
  Status matmul(const NodeProto& node);
  Status flatten(const NodeProto& node);
  Status softmax(const NodeProto& node);
  Status dropout(const NodeProto& node);
  Status slice(const NodeProto& node);
  Status pad(const NodeProto& node);
  Status rectifier(const NodeProto& node);
  Status identity(const NodeProto& node);
  Status transpose(const NodeProto& node);
  Status cast(const NodeProto& node);
  Status fold_shape(const NodeProto& node);
  Status branch(const NodeProto& node);

  static std::string at(const NodeProto& node);  // "[onnx] <name>: <operator> "
  template <class... Parts>
  static Status refuse(const NodeProto& node, const Parts&... parts) {
    return error(StatusCode::unsupported, at(node), parts...);
  }
  // An attribute of older opsets that became the i-th input.
  Sizes integers_at(const NodeProto& node, const char* name, int i) const;
  // Padding that is the same at both ends, [h, w]; refused: other padding.
  Result<Sizes> padding(const NodeProto& node) const;
  Status check_ones(const NodeProto& node, const char* name) const;

  // --- nets over signals (import_signal.cpp): its rows' answer is false where the node is
  // another's. Their values are held batch first and in any other shape of as many values;
  // views_ has the program's shape of each.
  Result<bool> signal(const NodeProto& node);
  Result<bool> conv1d(const NodeProto& node);
  Result<bool> elementwise(const NodeProto& node);
  Result<bool> view(const NodeProto& node);
  Result<bool> take(const NodeProto& node);
  Result<bool> turn(const NodeProto& node);
  Result<bool> join(const NodeProto& node);
  Result<bool> mean(const NodeProto& node);
  Result<bool> mirror(const NodeProto& node);
  Result<bool> lstm(const NodeProto& node);
  Status add_signal(const std::string& input, ProgramValue& value);
  Status finish_signal(const std::string& output);
  Sizes sizes_in_program(const NodeProto& node, int i) const;
  Result<Sizes> batch_first(const NodeProto& node, const std::string& name) const;
  Result<std::string> shaped(const NodeProto& node, int i, const Sizes& wanted);
  void make(const NodeProto& node, const char* op, std::vector<std::string> inputs, Sizes shape,
            std::map<std::string, Attribute> attributes, int output = 0);
  std::string insert(const std::string& name, const char* op, const std::string& input,
                     const Sizes& shape, std::map<std::string, Attribute> attributes);
  void alias(const NodeProto& node, int output, const std::string& value);
  std::string unique(const std::string& name);

  // --- values
  struct Value {
    std::string name;       // the program's
    int64_t rank = 0;       // in the ONNX graph
    bool squeezed = false;  // [n, c, 1, 1] there, [n, c] in the program
  };
  const Value& of(const NodeProto& node, int i) const;
  const Tensor* constant(const std::string& name) const;
  // The program's value behind the i-th input; image: which must be [n, c, h, w].
  Result<std::string> value(const NodeProto& node, int i) const;
  Result<std::string> image(const NodeProto& node) const;
  // The first output is the first input under another name.
  void same(const NodeProto& node);
  Node& emit(const NodeProto& node, const char* op, std::vector<std::string> inputs,
             int64_t rank, bool squeezed = false);
  // A constant becomes a parameter under its own name.
  void parameter(Node& node, const char* role, const std::string& name);

  std::filesystem::path directory_;
  std::map<std::string, int64_t> given_;  // open sizes by name
  OnnxShapes shapes_;                     // of the ONNX graph's values
  bool signals_ = false;                  // every input that is read holds floats
  bool all_viewed_ = false;               // signal()'s rows come first for every value
  std::map<std::string, Sizes> views_;    // of the program's values
  int64_t opset_ = 0;
  ImportedGraph result_;
  std::map<std::string, Tensor> constants_;
  std::map<std::string, Sizes> sizes_;   // constants and folded shapes as integers
  std::map<std::string, Value> values_;  // by the ONNX graph's name
  std::set<std::string> names_;          // of nodes
};

}  // namespace nibble
