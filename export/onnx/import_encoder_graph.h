// One graph on its way into an encoder's Program: what the walk (import_encoder.cpp), the
// folded operators (import_encoder_grids.cpp) and the network's (import_encoder_rows.cpp,
// import_encoder_attention.cpp) share.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "export/onnx/import.h"
#include "export/onnx/import_encoder_item.h"
#include "export/onnx/symbolic.h"

namespace onnx {
class AttributeProto;
class GraphProto;
class ModelProto;
class NodeProto;
}  // namespace onnx

namespace nibble {

// "encoder.layer.0.attention.self.query" of "....query.weight"; "" of any other name.
std::string tensor_stem(const std::string& tensor, const std::string& ending);

class EncoderImport {
 public:
  using NodeProto = onnx::NodeProto;
  using Item = EncoderItem;
  using Form = EncoderItem::Form;

  explicit EncoderImport(std::filesystem::path directory)
      : directory_(std::move(directory)) {}
  Result<ImportedGraph> run(const onnx::ModelProto& model);

 private:
  // --- the walk
  Status add_constants(const onnx::GraphProto& graph);
  Status add_inputs(const onnx::GraphProto& graph);
  void count_uses(const onnx::GraphProto& graph);
  Status visit_all(const onnx::GraphProto& graph);
  Status visit(const NodeProto& node);
  Status branch(const NodeProto& node);
  Status finish(const onnx::GraphProto& graph);
  Status name_inputs();
  void set_blocks();
  void account();

  // --- folded: nothing where an operand is none of sizes, places and masks
  std::optional<symbolic::Grid> grid_in(const NodeProto& node, int i) const;
  Result<symbolic::Grid> folded(const NodeProto& node,
                                const std::vector<symbolic::Grid>& inputs);
  Status fold_shape(const NodeProto& node);

  // --- the network's operators; each makes an Item, or says why it is none
  Status row(const NodeProto& node);
  Status gather(const NodeProto& node);
  Status add(const NodeProto& node);
  Status subtract(const NodeProto& node);
  Status multiply(const NodeProto& node);
  Status divide(const NodeProto& node);
  Status power(const NodeProto& node);
  Status unary(const NodeProto& node);
  Status reduce(const NodeProto& node);
  Status where(const NodeProto& node);
  Status bound(const NodeProto& node);
  Status reshape(const NodeProto& node);
  Status transpose(const NodeProto& node);
  Status matmul(const NodeProto& node);
  Status gemm(const NodeProto& node);
  Status softmax(const NodeProto& node);
  Status layer_norm(const NodeProto& node);
  Status gelu(const NodeProto& node);
  Status attention(const NodeProto& node, const Item& probabilities, const Item& values);
  Status linear(const NodeProto& node, const Item& x, const Item& weight, bool turned);
  Status masked_scores(const NodeProto& node, const Item& scores, const Item& shown);
  Status add_bias(const NodeProto& node, const Item& x, const Item& bias);
  Status add_norm(const NodeProto& node, const Item& x, const std::string& weight,
                  const std::string& bias);
  // factor * x * (1 + curve): a gelu where the factor is a half.
  Status gated(const NodeProto& node, Item item);
  Status scaled(const NodeProto& node, const Item& item, double factor);
  Status norm_step(const NodeProto& node, const Item& x, const Item& divisor);

  // --- what a node says
  static std::string name_of(const NodeProto& node);
  template <class... Parts>
  static Status refuse(const NodeProto& node, const Parts&... parts) {
    return error(StatusCode::unsupported, at(node), parts...);
  }
  static std::string at(const NodeProto& node);
  static const onnx::AttributeProto* attribute(const NodeProto& node, const char* name);
  static int64_t integer(const NodeProto& node, const char* name, int64_t otherwise);
  static double number(const NodeProto& node, const char* name, double otherwise);
  static bool has_input(const NodeProto& node, int i);
  std::optional<std::vector<int64_t>> integers_at(const NodeProto& node, const char* name,
                                                  int i) const;

  // --- items
  const Item& in(const NodeProto& node, int i) const;
  std::optional<double> number_of(const Item& item) const;  // of one constant element
  const Tensor* vector_of(const Item& item, int64_t size) const;  // a constant [size]
  // The i-th input as a value of the program: parts become nodes now.
  Result<Item> value(const NodeProto& node, int i);
  Result<std::string> sum_of(const NodeProto& node,
                             const std::vector<EmbeddingPart>& parts);
  Status set(const NodeProto& node, Item item);
  Status set(const NodeProto& node, Form form, const Item& like, double factor = 1);
  Status emit(const NodeProto& node, const char* op, const std::string& name,
              std::vector<std::string> inputs, const std::optional<symbolic::Sizes>& dims,
              std::map<std::string, std::string> parameters = {},
              std::map<std::string, Attribute> attributes = {});
  std::string unique(const std::string& name);
  // The constant as a parameter; its name in the program.
  std::string parameter(const std::string& constant, std::vector<int64_t> shape = {});
  // Is the formula of a value [batch, .., sequence] 1 for a token and 0 for padding, or
  // what else for the two?
  struct TwoCases {
    double token = 0, padding = 0;
  };
  std::optional<TwoCases> mask_cases(const symbolic::Grid& grid, size_t batch_axis,
                                     size_t sequence_axis);

  std::filesystem::path directory_;
  int64_t opset_ = 0;
  ImportedGraph result_;
  std::map<std::string, Tensor> constants_;
  std::map<std::string, Item> items_;
  std::map<std::string, int> uses_;
  std::map<std::string, std::string> named_;  // constant -> parameter
  std::set<std::string> names_;               // of nodes
  std::set<std::string> inputs_;
  std::string mask_;                     // the input that says which are tokens
  std::map<std::string, int64_t> rows_;  // input of ids -> rows of its table
  int64_t positions_ = 0;                // rows of their table
};

}  // namespace nibble
