// Lowers a Program, with its float or quantized parameters, to an ONNX graph.
//
// One row of onnx_ops.inc an op; a test checks that no op of ops.inc lacks one. Standard
// operators only, but MatMulNBits where that was asked for. A quantized value v becomes
// v.raw -> QuantizeLinear -> v.codes -> DequantizeLinear -> v, so the name v means what
// it means in the Program. Parameters keep the checkpoint's tensor names;
// "<tensor>.scale" and "<tensor>.zero_point" stand beside codes.
//
// A language model gets input_ids and position_ids [batch, sequence], attention_mask
// [batch, total_sequence] (1: a token, 0: padding, past positions included),
// past_key_values.{i}.key/value [batch, kv_heads, past_sequence, head_dim] -> logits,
// present.{i}.key/value: the names that ONNX Runtime GenAI and transformers' exports use.
// position_ids are rope's; what a token may see follows from its place in the sequence,
// so that padding may stand at either end.
//
// An encoder gets input_ids, attention_mask (1: a token, 0: padding) and token_type_ids,
// [batch, sequence] each -> the program's output. Padding is at the end of a row, is not
// attended to and not pooled; last_hidden_state there means nothing.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "export/onnx/onnx_graph.h"
#include "export/onnx/onnx_weight.h"
#include "export/onnx/qoperator.h"
#include "kernels/artifact/artifact.h"
#include "kernels/program/shape.h"

namespace nibble {

struct LoweringOptions {
  int64_t opset = kOnnxOpset;  // that of the graph
  bool float64 = false;        // see lower_float64.cpp
  bool tensorrt = false;       // INT8 and FP8 as TensorRT takes them (check_tensorrt.cpp)
  bool matmul_nbits = false;   // quantized matrices as MatMulNBits, not DequantizeLinear
  bool qoperator = false;      // operators on codes (qoperator.h)
  int64_t accuracy_level = 1;  // of MatMulNBits
};

class OnnxLowering {
 public:
  OnnxLowering(const Artifact& artifact, OnnxGraph& graph, const LoweringOptions& options)
      : artifact_(artifact), graph_(graph), options_(options) {}

  Status run();

  // --- for the rows
  OnnxGraph& graph() { return graph_; }
  const Artifact& artifact() const { return artifact_; }
  // What a node reads: its i-th input, requantized when the layer has its own input
  // scheme.
  std::string input(const Node& node, size_t i = 0);
  // The name for what a node computes, before its quantization.
  std::string output(const Node& node) const;
  // A value inside a node's lowering: "<node>/<part>".
  static std::string inner(const Node& node, const char* part) {
    return node.name + "/" + part;
  }
  // A float parameter as f32 (16-bit ones are stored as they are and cast).
  Result<std::string> float_parameter(const std::string& tensor);
  // A layer's weight as f32, dequantized where it is quantized.
  Result<std::string> weight(const Node& node, Orientation orientation,
                             const std::string& role = "weight");
  // x w^T under the name `output`: MatMul, or MatMulNBits where that was asked for and w
  // is quantized. rows: x's dimensions before the last.
  Result<std::string> product(const Node& node, const std::string& role,
                              const std::string& x, const std::vector<std::string>& rows,
                              const std::string& output);
  // x through a pair with the scheme of a program value, named after `output`; x where
  // that value has none. Of codes of that scheme it changes nothing.
  std::string quantized_as(const std::string& value, const std::string& x,
                           const std::string& output);
  // The dimensions of a value of the program before its last, as the graph writes them.
  std::vector<std::string> rows_of(const std::string& value) const;
  // A layer's bias: int32 codes at s_x * s_w where both are static integers, else float.
  Result<std::string> bias(const Node& node);

  // --- linear layers with dynamic activations (lower_dynamic.cpp)
  bool reads_dynamic(const Node& node) const;
  // x w^T with x's tokens in codes, before the bias.
  Result<std::string> dynamic_product(const Node& node);

  // --- operations that are done in float64 where that was asked for (lower_float64.cpp);
  // else names and values pass through
  bool is_float64() const { return options_.float64; }
  std::string widened(const std::string& x);
  std::string wide_number(double value);
  // What an operation on widened inputs calls its result, which narrow() rounds to
  // `name` and returns that.
  std::string wide(const std::string& name) const;
  std::string narrow(const std::string& name);

  // --- language models
  std::string positions();  // [sequence]: places among past and present tokens
  // [batch, 1, sequence, total], 0 or the lowest float, which keeps a row that sees
  // nothing (padding) free of NaN; window 0: none
  std::string causal_mask(int64_t window);
  std::string hadamard_matrix(
      int64_t block);  // [block, block], ops/hadamard's H / sqrt(b)
  // --- encoders
  std::string padding_mask();  // [batch, 1, 1, sequence], 0 or the lowest float
  std::string token_mask();    // [batch, sequence, 1], 1 or 0

  // [batch, sequence, head_dim / 2] each, of position_ids, from tables of the context's
  // length.
  struct Rotation {
    std::string cos, sin;
  };
  Rotation rotation(const Node& rope);
  // The cache's tensors of past positions, "" when the program has no such state.
  struct Past {
    std::string key, value, present_key, present_value;
  };
  Past past(const std::string& state) const;

 private:
  Status add_inputs();
  void add_encoder_inputs();
  Status add_outputs();
  void quantize_value(const std::string& value);
  std::string read(const std::string& value);  // what its consumers read, in floats
  std::string key_is_token();  // [batch, 1, 1, keys], of attention_mask
  Result<std::string> in_code_order(const std::string& tensor, const std::string& x);
  struct TokenCodes {
    std::string codes, scale;  // f32 [.., features] and [.., 1]
  };
  TokenCodes token_codes(const std::string& x);
  Result<std::string> integer_weight(const Node& node);
  std::string fake_quantize(const std::string& x, const ActivationScheme& activation,
                            const std::string& codes, const std::string& output,
                            bool from_zero);
  // The scale of a layer's integer input; nothing when it reads floats.
  std::optional<float> input_scale(const Node& node) const;

  const Artifact& artifact_;
  OnnxGraph& graph_;
  LoweringOptions options_;
  Shapes shapes_;                             // of the program's values
  std::map<std::string, std::string> names_;  // program value -> what its consumers read
  std::map<std::pair<std::string, Orientation>, std::string> weights_;  // dequantized
  std::map<std::string, std::string> nbits_;  // of a tensor, as MatMulNBits has it
  std::set<std::string> made_;  // shared values that exist already
  std::unique_ptr<QOperatorLowering> codes_;  // where that was asked for
};

struct OnnxOp {
  const char* op;
  Status (*lower)(OnnxLowering& lowering, const Node& node);
};
const std::vector<OnnxOp>& all_onnx_ops();

#define NIBBLE_ONNX_OP(op) Status lower_##op(OnnxLowering& lowering, const Node& node);
#include "export/onnx/onnx_ops.inc"
#undef NIBBLE_ONNX_OP

// unsupported: other dynamic activations than a linear layer's int8n/r@f32.
Status check_onnx_dynamic(const ActivationScheme& activation, const Node& node);

// x/2 (1 + erf(x / sqrt(2))) of a float64 value; ONNX Runtime's Erf and Gelu are float32's.
std::string add_gelu_float64(OnnxGraph& graph, const std::string& x,
                             const std::string& output);
// unsupported: what TensorRT's explicit quantization does not take (check_tensorrt.cpp).
Status check_tensorrt(const Artifact& artifact, const LoweringOptions& options);

// unsupported: float64 of anything but an encoder.
Status check_float64(const Artifact& artifact);

// unsupported: the first thing of the artifact that has no ONNX form, named; of
// MatMulNBits every layer that it cannot hold, with the reason. invalid_argument:
// MatMulNBits without a quantized matrix.
Status can_lower(const Artifact& artifact, const LoweringOptions& options);

}  // namespace nibble
