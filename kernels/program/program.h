// A model as a graph: what every part of nibble reads. recipes/models makes one from
// config.json, kernels/runtime executes it, ptq/module makes torch modules of it,
// export/onnx lowers it. The ops, their operands and attributes are listed in ops.inc.
//
// A node's name is the checkpoint's own module path ("model.layers.0.self_attn.q_proj").
// A parameter maps a role ("weight", "bias") to a tensor's name; two nodes may name one
// tensor (a tied embedding and lm_head). A *layer*, the unit of plan, ledger and
// calibration, is the weight of a linear, conv2d or embedding node, or an expert's.
//
// Values of language models are [batch, sequence, features] (the executor runs one
// sequence: [sequence, features]); images are [batch, channels, height, width].
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/base/tensor.h"
#include "kernels/scheme/kv_scheme.h"

namespace nibble {

using Attribute = std::variant<int64_t, double, std::string, std::vector<int64_t>>;

struct ProgramValue {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::string> shape;  // numbers or symbols: "batch", "sequence", "512"
  bool operator==(const ProgramValue&) const = default;
};

// A KV cache. The executor keeps it, the torch module runs without it, ONNX emits past
// and present.
struct ProgramState {
  std::string name;  // e.g. "model.layers.0.self_attn.cache"
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  KvScheme scheme = {};  // what the executor stores it as, and rounds its queries to
  bool operator==(const ProgramState&) const = default;
};

struct Node {
  std::string op;
  std::string name;
  int block =
      -1;  // decoder layer or residual block, kFirstBlock (before all), kLastBlock
  std::vector<std::string> inputs;
  std::vector<std::string> outputs;
  std::map<std::string, std::string> parameters;
  std::map<std::string, Attribute> attributes;
  bool operator==(const Node&) const = default;

  // An attribute of that type, or `otherwise` when it is absent or of another type (a
  // program is checked before it is used). number() also reads an integer.
  int64_t integer(std::string_view name, int64_t otherwise) const;
  double number(std::string_view name, double otherwise) const;
  std::string text(std::string_view name, std::string_view otherwise) const;
  std::vector<int64_t> integers(std::string_view name,
                                std::vector<int64_t> otherwise) const;
  const std::string& parameter(const std::string& role) const;  // "" when it has none
};
inline constexpr int kFirstBlock = -1;
inline constexpr int kLastBlock = 1 << 20;

struct Program {
  std::string architecture;  // "LlamaForCausalLM", "ResNetCIFAR", "MLP"
  std::vector<ProgramValue> inputs;
  std::vector<ProgramValue> outputs;
  std::vector<ProgramState> states;
  std::vector<Node> nodes;     // in execution order
  int64_t context_length = 0;  // language models: positions; else 0
  int64_t vocabulary = 0;
  bool operator==(const Program&) const = default;

  const Node* find(std::string_view node_name) const;
  int block_count() const;  // blocks are 0 .. count-1, pseudo-blocks not counted
  // The node that makes a value, or nullptr (a program input); the nodes that read it.
  const Node* producer(std::string_view value) const;
  std::vector<const Node*> consumers(std::string_view value) const;
  // Reads tokens: a decoder, or an encoder, whose tokens attend in both directions and
  // which makes hidden states or an embedding of the sequence in place of logits.
  bool is_language_model() const { return vocabulary > 0; }
  bool is_encoder() const;
};

// Structure: ops and roles known (ops.inc), every input made before it is read, names
// unique, blocks in order and none empty. Sizes and attributes are program/shape.h's.
// invalid_argument / unsupported (an unknown op); the message names the node.
Status check_program(const Program& program);

// The nodes of a block and its live values: inputs made before it, outputs read after it.
struct BlockSlice {
  std::vector<const Node*> nodes;
  std::vector<std::string> inputs;
  std::vector<std::string> outputs;
};
BlockSlice slice(const Program& program, int block);

// Text form: one line a thing; parse(print(p)) == p for any names and attributes (but
// NaN).
//
//   nibble-program 1
//   architecture LlamaForCausalLM
//   context_length 512
//   vocabulary 512
//   input input_ids I64 [batch, sequence]
//   output logits F32 [batch, sequence, 512]
//   state model.layers.0.self_attn.cache kv_heads 4 head_dim 8
//   state ... kv_heads 4 head_dim 8 keys "int8n/r@f16" values "int8n/r@f16"    not f32
//   node 0 rope model.layers.0.self_attn.q_rope (in) -> (out) {role: tensor} [theta =
//   10000.0]
//
// After `node`: the block (first, a number, last), op, name. A word of letters, digits
// and _ . / - stands as it is, any other text in double quotes (\" \\ \xNN). Attribute
// values: an integer, a real (with a point, exponent, inf), quoted text, or integers in
// parentheses. invalid_argument: the message has the line and what was expected.
std::string print_program(const Program& program);
Result<Program> parse_program(std::string_view text);

// One row of ops.inc.
struct OpInfo {
  const char* name;
  int inputs;
  std::vector<std::string> required_parameters;
  std::vector<std::string> optional_parameters;
  bool is_layer;  // its "weight" is a layer (moe has many: layers.h)
};
const std::vector<OpInfo>& all_ops();
const OpInfo* find_op(std::string_view name);

}  // namespace nibble
