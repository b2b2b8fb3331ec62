#include "kernels/runtime/encoder_path.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/parallel.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/elementwise/elementwise.h"
#include "kernels/ops/embedding/embedding.h"
#include "kernels/ops/gelu/gelu.h"
#include "kernels/ops/layer_norm/layer_norm.h"
#include "kernels/ops/pool/pool.h"
#include "kernels/program/shape.h"
#include "kernels/runtime/node_weights.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 8;          // of a value that one thread takes at a time
constexpr int64_t kChunk = 1 << 12;   // floats of an elementwise node, likewise
constexpr int kIds = -1, kTypes = -2;  // in place of a slot

template <class... Parts>
Status failure(StatusCode code, const std::string& where, const Parts&... parts) {
  return error(code, "[runtime] ", where, ": ", parts...);
}

template <class Body>
void in_chunks(int64_t n, int64_t chunk, const Body& body) {
  parallel_for((n + chunk - 1) / chunk, [&](int64_t i) {
    body(i * chunk, std::min(chunk, n - i * chunk));
  });
}

enum class Op : uint8_t {
  embedding,
  position_embedding,
  linear,
  add,
  layer_norm,
  gelu,
  relu,
  attention,
  mean_pool,
  first_token,
  l2_normalize,
};
struct OpName {
  const char* name;
  Op op;
};
constexpr OpName kOps[] = {
    {"embedding", Op::embedding},   {"position_embedding", Op::position_embedding},
    {"linear", Op::linear},         {"add", Op::add},
    {"layer_norm", Op::layer_norm}, {"gelu", Op::gelu},
    {"relu", Op::relu},             {"attention", Op::attention},
    {"mean_pool", Op::mean_pool},   {"first_token", Op::first_token},
    {"l2_normalize", Op::l2_normalize},
};

struct Step {
  const Node* node = nullptr;
  Op op = Op::add;
  std::vector<int> inputs;
  int output = -1;
  int64_t features = 0;
  bool pooled = false;      // a row a sequence, not a token
  bool in_next = false;     // an add that the layer_norm after it does
  int added = kIds;         // layer_norm: the slot that it adds to its input
  int sum = kIds;           // and the input's, in place of the add's output
  LinearWeight table;
  PreparedLinear linear;
  std::vector<float> weight, bias;
  float epsilon = 0;
  GeluFunction gelu = nullptr;
  AttentionShape attention;
};

}  // namespace

struct EncoderPath::Implementation {
  std::shared_ptr<const Artifact> artifact;
  std::vector<Step> steps;
  std::vector<std::vector<float>> slots;
  std::vector<int64_t> slot_features;
  std::vector<int64_t> offsets;  // of the batch's sequences, and their end
  std::vector<int32_t> positions, zero_types;
  LayerNormFunction layer_norm = select_layer_norm().run;
  int64_t reserved = 0;
  int64_t features = 0;
  int64_t type_count = 1;
  bool pooled = false;

  // --- preparation

  Status prepare_step(const Node& node, Compute compute,
                      std::map<std::string, std::string>* kernels, Step& step) {
    switch (step.op) {
      case Op::embedding:
      case Op::position_embedding: {
        NIBBLE_ASSIGN_OR_RETURN(step.table, node_weight(*artifact, node));
        kernels->emplace(node.parameter("weight"), kEmbeddingKernel);
        break;
      }
      case Op::linear: {
        NIBBLE_ASSIGN_OR_RETURN(const LinearWeight weight, node_weight(*artifact, node));
        NIBBLE_ASSIGN_OR_RETURN(step.bias, node_floats(*artifact, node, "bias"));
        NIBBLE_ASSIGN_OR_RETURN(step.linear,
                                prepare_node_linear(*artifact, node, weight,
                                                    linear_activation(compute), kernels));
        break;
      }
      case Op::layer_norm: {
        NIBBLE_ASSIGN_OR_RETURN(step.weight, node_floats(*artifact, node, "weight"));
        NIBBLE_ASSIGN_OR_RETURN(step.bias, node_floats(*artifact, node, "bias"));
        step.epsilon = static_cast<float>(node.number("epsilon", 1e-12));
        break;
      }
      case Op::gelu: {
        const GeluKernel& kernel = select_gelu();
        step.gelu = node.integer("tanh", 0) != 0 ? kernel.run_tanh : kernel.run;
        break;
      }
      case Op::attention: {
        if (node.integer("causal", 1) != 0) {
          return failure(StatusCode::unsupported, node.name,
                         "every attention of an encoder must see all tokens (causal = "
                         "0); found a causal one");
        }
        step.attention = {.heads = node.integer("heads", 0),
                          .kv_heads = node.integer("kv_heads", 0),
                          .head_dim = node.integer("head_dim", 0),
                          .scale = static_cast<float>(node.number("scale", 1.0)),
                          .causal = false};
        break;
      }
      default:
        break;
    }
    return ok_status();
  }

  Result<Shapes> value_shapes() const {
    Shapes given, values;
    for (const auto& [name, tensor] : artifact->tensors) given[name] = tensor.shape;
    for (const auto& [name, packed] : artifact->packed) given[name] = packed.shape;
    NIBBLE_RETURN_IF_ERROR(check_shapes(artifact->program, given, &values));
    return values;
  }

  Status check_interface(const Program& program) const {
    if (program.inputs.empty() || program.inputs.size() > 2 ||
        program.outputs.size() != 1 ||
        program.nodes.back().outputs[0] != program.outputs[0].name) {
      return failure(StatusCode::unsupported, program.architecture,
                     "an encoder must read ids, or ids and token types, and make one "
                     "output with its last node; found ",
                     program.inputs.size(), " inputs and ", program.outputs.size(),
                     " outputs");
    }
    return ok_status();
  }

  Status prepare(Compute compute, std::map<std::string, std::string>* kernels) {
    const Program& program = artifact->program;
    NIBBLE_RETURN_IF_ERROR(check_interface(program));
    NIBBLE_ASSIGN_OR_RETURN(const Shapes shapes, value_shapes());
    std::map<std::string, size_t> last_use;
    for (size_t i = 0; i < program.nodes.size(); ++i) {
      for (const std::string& name : program.nodes[i].inputs) last_use[name] = i;
    }
    last_use[program.outputs[0].name] = program.nodes.size();

    std::map<std::string, int> at;  // value -> slot
    at[program.inputs[0].name] = kIds;
    if (program.inputs.size() > 1) at[program.inputs[1].name] = kTypes;
    std::map<std::string, bool> is_pooled;
    std::vector<int> unused;
    for (size_t i = 0; i < program.nodes.size(); ++i) {
      const Node& node = program.nodes[i];
      Step step;
      step.node = &node;
      const auto row = std::find_if(std::begin(kOps), std::end(kOps),
                                    [&](const OpName& op) { return node.op == op.name; });
      if (row == std::end(kOps)) {
        return failure(StatusCode::unsupported, node.name, "op '", node.op,
                       "' does not run on the tokens of an encoder");
      }
      step.op = row->op;
      const bool reads_ids =
          step.op == Op::embedding || step.op == Op::position_embedding;
      for (const std::string& name : node.inputs) {
        if (reads_ids != (at.at(name) < 0)) {
          return failure(StatusCode::unsupported, node.name, node.op, " must read ",
                         reads_ids ? "ids" : "a value, not ids", "; found ", name);
        }
        step.inputs.push_back(at.at(name));
      }
      const bool pools = step.op == Op::mean_pool || step.op == Op::first_token;
      step.pooled = pools || is_pooled[node.inputs[0]];
      if (is_pooled[node.inputs[0]] && (pools || step.op == Op::attention)) {
        return failure(StatusCode::unsupported, node.name, node.op,
                       " must read tokens; found a pooled value");
      }
      is_pooled[node.outputs[0]] = step.pooled;
      step.features = shapes.at(node.outputs[0]).back();
      step.output = take_slot(step.features, unused);
      at[node.outputs[0]] = step.output;
      NIBBLE_RETURN_IF_ERROR(prepare_step(node, compute, kernels, step));
      if (step.op == Op::embedding && step.inputs[0] == kTypes) {
        type_count = step.table.rows;
      }
      // An add that only the next node reads, and that is a layer_norm: done there.
      const bool next_norms = step.op == Op::add && i + 1 < program.nodes.size() &&
                              program.nodes[i + 1].op == "layer_norm" &&
                              program.nodes[i + 1].inputs[0] == node.outputs[0] &&
                              last_use[node.outputs[0]] == i + 1;
      step.in_next = next_norms;
      if (!steps.empty() && steps.back().in_next) {
        step.sum = steps.back().inputs[0];
        step.added = steps.back().inputs[1];
      }
      // The operands of such an add stay until the layer_norm has read them.
      const auto release = [&](const Node& of, size_t when) {
        for (const std::string& name : of.inputs) {
          const auto found = at.find(name);
          if (last_use[name] == when && found != at.end() && found->second >= 0) {
            unused.push_back(found->second);
            at.erase(found);
          }
        }
      };
      if (!next_norms) release(node, i);
      if (step.sum != kIds) release(program.nodes[i - 1], i - 1);
      steps.push_back(std::move(step));
    }
    features = shapes.at(program.outputs[0].name).back();
    pooled = steps.back().pooled;
    return ok_status();
  }

  int take_slot(int64_t wanted, std::vector<int>& unused) {
    if (unused.empty()) {
      slots.emplace_back();
      slot_features.push_back(wanted);
      return static_cast<int>(slots.size()) - 1;
    }
    const int slot = unused.back();
    unused.pop_back();
    int64_t& widest = slot_features[static_cast<size_t>(slot)];
    widest = std::max(widest, wanted);
    return slot;
  }

  // --- running

  void reserve(int64_t rows) {
    if (rows <= reserved) return;
    reserved = rows;
    for (size_t i = 0; i < slots.size(); ++i) {
      slots[i].resize(static_cast<size_t>(rows * slot_features[i]));
    }
    zero_types.assign(static_cast<size_t>(rows), 0);
    positions.resize(static_cast<size_t>(artifact->program.context_length));
    std::iota(positions.begin(), positions.end(), 0);
  }

  float* data(int slot) { return slots[static_cast<size_t>(slot)].data(); }

  Status look_up(const Step& step, std::span<const int32_t> ids) {
    float* y = data(step.output);
    return embedding(
        ids, step.table,
        MatrixView<float>(y, static_cast<int64_t>(ids.size()), step.features));
  }

  // body(first row, rows) for every sequence.
  template <class Body>
  void for_sequences(const Body& body) {
    parallel_for(static_cast<int64_t>(offsets.size()) - 1, [&](int64_t i) {
      const int64_t first = offsets[static_cast<size_t>(i)];
      body(i, first, offsets[static_cast<size_t>(i) + 1] - first);
    });
  }

  Status run_step(const Step& step, std::span<const int32_t> tokens,
                  std::span<const int32_t> types, bool fused) {
    const int64_t n = step.pooled && step.op != Op::mean_pool && step.op != Op::first_token
                          ? static_cast<int64_t>(offsets.size()) - 1
                          : offsets.back();
    const int64_t width = step.features;
    const float* x = step.inputs[0] >= 0 ? data(step.inputs[0]) : nullptr;
    float* y = data(step.output);
    switch (step.op) {
      case Op::embedding:
        return look_up(step, step.inputs[0] == kTypes ? types : tokens);
      case Op::position_embedding:
        for (size_t i = 0; i + 1 < offsets.size(); ++i) {
          const int64_t length = offsets[i + 1] - offsets[i];
          NIBBLE_RETURN_IF_ERROR(embedding(
              std::span(positions).first(static_cast<size_t>(length)), step.table,
              MatrixView<float>(y + offsets[i] * width, length, width)));
        }
        break;
      case Op::linear:
        run_linear(step.linear, MatrixView<const float>(x, n, step.linear.cols),
                   step.bias.empty() ? nullptr : step.bias.data(),
                   MatrixView<float>(y, n, width));
        break;
      case Op::add: {
        if (step.in_next && fused) break;
        const float* b = data(step.inputs[1]);
        in_chunks(n * width, kChunk, [&](int64_t i, int64_t count) {
          add(x + i, b + i, count, y + i);
        });
        break;
      }
      case Op::layer_norm: {
        const bool adds = fused && step.sum != kIds;
        const float* a = adds ? data(step.sum) : x;
        const float* b = adds ? data(step.added) : nullptr;
        in_chunks(n, kRows, [&](int64_t t, int64_t count) {
          const int64_t i = t * width;
          layer_norm(MatrixView<const float>(a + i, count, width),
                     MatrixView<const float>(b == nullptr ? b : b + i, count, width),
                     step.weight.data(), step.bias.data(), step.epsilon,
                     MatrixView<float>(y + i, count, width));
        });
        break;
      }
      case Op::gelu:
        in_chunks(n * width, kChunk,
                  [&](int64_t i, int64_t count) { step.gelu(x + i, count, y + i); });
        break;
      case Op::relu:
        in_chunks(n * width, kChunk,
                  [&](int64_t i, int64_t count) { relu(x + i, count, y + i); });
        break;
      case Op::attention: {
        const int64_t kv = step.attention.kv_heads * step.attention.head_dim;
        const float* k = data(step.inputs[1]);
        const float* v = data(step.inputs[2]);
        const AttentionKernel& kernel = select_attention();
        for_sequences([&](int64_t, int64_t first, int64_t count) {
          attention(kernel, step.attention,
                    MatrixView<const float>(x + first * width, count, width),
                    MatrixView<const float>(k + first * kv, count, kv),
                    MatrixView<const float>(v + first * kv, count, kv),
                    MatrixView<float>(y + first * width, count, width));
        });
        break;
      }
      case Op::mean_pool:
        for_sequences([&](int64_t i, int64_t first, int64_t count) {
          mean_pool(MatrixView<const float>(x + first * width, count, width),
                    y + i * width);
        });
        break;
      case Op::first_token:
        for_sequences([&](int64_t i, int64_t first, int64_t) {
          std::copy_n(x + first * width, width, y + i * width);
        });
        break;
      case Op::l2_normalize:
        l2_normalize(MatrixView<const float>(x, n, width), MatrixView<float>(y, n, width));
        break;
    }
    return ok_status();
  }

  Status check_call(std::span<const int32_t> tokens, std::span<const int64_t> lengths,
                    std::span<const int32_t> types, MatrixView<float> output) {
    const Program& program = artifact->program;
    offsets.assign(1, 0);
    for (const int64_t length : lengths) {
      if (length < 1 || length > program.context_length) {
        return failure(StatusCode::out_of_range, "tokens", "sequences of 1 to ",
                       program.context_length,
                       " tokens (the model's context) were required; sequence ",
                       offsets.size() - 1, " has ", length, "; cut it");
      }
      offsets.push_back(offsets.back() + length);
    }
    const auto count = static_cast<int64_t>(tokens.size());
    if (count == 0 || offsets.back() != count) {
      return failure(StatusCode::invalid_argument, "tokens",
                     "as many as the lengths say, and at least one, were required; found ",
                     count, " for lengths of ", offsets.back());
    }
    if (!types.empty() && types.size() != tokens.size()) {
      return failure(StatusCode::invalid_argument, "token types",
                     "none or one a token were required; found ", types.size(), " for ",
                     count, " tokens");
    }
    const int64_t rows = pooled ? static_cast<int64_t>(lengths.size()) : count;
    if (output.rows != rows || output.cols != features) {
      return failure(StatusCode::invalid_argument, "output", "[", rows, ", ", features,
                     "] was required; found [", output.rows, ", ", output.cols, "]");
    }
    for (size_t t = 0; t < tokens.size(); ++t) {
      if (tokens[t] < 0 || tokens[t] >= program.vocabulary) {
        return failure(StatusCode::out_of_range, "tokens", "ids in [0, ",
                       program.vocabulary, ") were required; found ", tokens[t],
                       " at position ", t, "; does the tokenizer belong to this model?");
      }
      if (!types.empty() && (types[t] < 0 || types[t] >= type_count)) {
        return failure(StatusCode::out_of_range, "token types", "types in [0, ",
                       type_count, ") were required; found ", types[t], " at position ",
                       t);
      }
    }
    return ok_status();
  }

  Status run(std::span<const int32_t> tokens, std::span<const int64_t> lengths,
             std::span<const int32_t> types,
             const std::function<void(const TapValue&)>& tap, MatrixView<float> output) {
    NIBBLE_RETURN_IF_ERROR(check_call(tokens, lengths, types, output));
    reserve(offsets.back());
    if (types.empty()) types = std::span(zero_types).first(tokens.size());
    const bool tapped = static_cast<bool>(tap);
    for (const Step& step : steps) {
      // A tap sees every value, so nothing is left to the next node; the bytes are the same.
      NIBBLE_RETURN_IF_ERROR(run_step(step, tokens, types, !tapped));
      if (!tapped) continue;
      const int64_t n =
          step.pooled ? static_cast<int64_t>(offsets.size()) - 1 : offsets.back();
      tap({.name = step.node->outputs[0],
           .shape = {n, step.features},
           .floats = {data(step.output), static_cast<size_t>(n * step.features)},
           .codes = {},
           .scale = 0});
    }
    const float* from = data(steps.back().output);
    for (int64_t r = 0; r < output.rows; ++r) {
      std::copy_n(from + r * features, features, output.row(r));
    }
    return ok_status();
  }
};

EncoderPath::EncoderPath() : implementation_(std::make_unique<Implementation>()) {}
EncoderPath::~EncoderPath() = default;

Result<std::unique_ptr<EncoderPath>> EncoderPath::create(
    std::shared_ptr<const Artifact> artifact, Compute compute,
    std::map<std::string, std::string>* kernels) {
  std::unique_ptr<EncoderPath> path(new EncoderPath());
  path->implementation_->artifact = std::move(artifact);
  NIBBLE_RETURN_IF_ERROR(path->implementation_->prepare(compute, kernels));
  return path;
}

int64_t EncoderPath::features() const { return implementation_->features; }

int64_t EncoderPath::rows(std::span<const int64_t> lengths) const {
  if (implementation_->pooled) return static_cast<int64_t>(lengths.size());
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

Status EncoderPath::run(std::span<const int32_t> tokens, std::span<const int64_t> lengths,
                        std::span<const int32_t> types,
                        const std::function<void(const TapValue&)>& tap,
                        MatrixView<float> output) {
  return implementation_->run(tokens, lengths, types, tap, output);
}

}  // namespace nibble
