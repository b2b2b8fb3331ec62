// A small seeded Llama decoder and round-to-nearest quantization in a few lines, for
// tests that do not lean on ptq, with or without GoogleTest.
#pragma once

#include <cmath>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/base/splitmix64.h"
#include "kernels/program/layers.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble::sample {

template <class T>
T take(Result<T> result) {
  if (!result.ok())
    throw std::runtime_error(result.status().message());  // fails the test
  return std::move(result).value();
}

inline void take(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message());
}

// Uniform in [-limit, limit], with a constant added.
inline Tensor random_tensor(const std::vector<int64_t>& shape, double limit,
                            SplitMix64& random, double mean = 0) {
  int64_t count = 1;
  for (int64_t dim : shape) count *= dim;
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<float>(mean + limit * (2 * random.uniform() - 1)));
  }
  return make_tensor(shape, values);
}

struct LlamaSize {
  int64_t vocabulary = 96, hidden = 48, heads = 4, kv_heads = 2, head_dim = 12;
  int64_t intermediate = 80, layers = 2, context = 128;
  bool interleaved = false, tied = true, bias = false;
  bool head_norms = false;  // of queries and keys, as Qwen3 has them
};

inline Artifact llama(const LlamaSize& size, uint64_t seed) {
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "LlamaForCausalLM";
  program.context_length = size.context;
  program.vocabulary = size.vocabulary;
  program.inputs = {{"input_ids", DType::i64, {"batch", "sequence"}}};
  program.outputs = {
      {"logits", DType::f32, {"batch", "sequence", std::to_string(size.vocabulary)}}};
  SplitMix64 random(seed);
  const auto weight = [&](const std::string& name, std::vector<int64_t> shape) {
    artifact.tensors[name] =
        random_tensor(shape, 1.7 / std::sqrt(static_cast<double>(shape.back())), random);
    return name;
  };
  const auto add = [&](Node node) { program.nodes.push_back(std::move(node)); };
  const auto linear = [&](int block, const std::string& name, const std::string& x,
                          int64_t n, int64_t k) {
    Node node{"linear", name,   block,
              {x},      {name}, {{"weight", weight(name + ".weight", {n, k})}},
              {}};
    if (size.bias) {
      node.parameters["bias"] = name + ".bias";
      artifact.tensors[name + ".bias"] = random_tensor({n}, 0.1, random);
    }
    add(node);
    return name;
  };
  const auto norm = [&](int block, const std::string& name, const std::string& x) {
    artifact.tensors[name + ".weight"] = random_tensor({size.hidden}, 0.3, random, 1.0);
    add({"rms_norm",
         name,
         block,
         {x},
         {name},
         {{"weight", name + ".weight"}},
         {{"epsilon", 1e-5}}});
    return name;
  };

  const std::string embedding =
      weight("model.embed_tokens.weight", {size.vocabulary, size.hidden});
  add({"embedding",
       "model.embed_tokens",
       kFirstBlock,
       {"input_ids"},
       {"hidden.0"},
       {{"weight", embedding}},
       {}});
  std::string x = "hidden.0";
  for (int64_t i = 0; i < size.layers; ++i) {
    const int block = static_cast<int>(i);
    const std::string p = cat("model.layers.", i, ".");
    const std::string a = p + "self_attn.";
    program.states.push_back({a + "cache", size.kv_heads, size.head_dim});
    const std::string n = norm(block, p + "input_layernorm", x);
    const int64_t q_width = size.heads * size.head_dim,
                  kv_width = size.kv_heads * size.head_dim;
    // Each turned where it is made, as recipes/models has them.
    const auto turned = [&](const std::string& part, int64_t width) {
      std::string value = linear(block, a + part + "_proj", n, width, size.hidden);
      if (size.head_norms) {
        const std::string name = a + part + "_norm";
        artifact.tensors[name + ".weight"] =
            random_tensor({size.head_dim}, 0.3, random, 1.0);
        add({"rms_norm",
             name,
             block,
             {value},
             {name},
             {{"weight", name + ".weight"}},
             {{"epsilon", 1e-5}, {"head_dim", size.head_dim}}});
        value = name;
      }
      const std::string name = a + part + "_proj.rope";
      add({"rope",
           name,
           block,
           {value},
           {name},
           {},
           {{"head_dim", size.head_dim},
            {"theta", 10000.0},
            {"interleaved", static_cast<int64_t>(size.interleaved)}}});
      return name;
    };
    const std::string q = turned("q", q_width);
    const std::string k = turned("k", kv_width);
    const std::string v = linear(block, a + "v_proj", n, kv_width, size.hidden);
    add({"attention",
         a + "attention",
         block,
         {q, k, v},
         {a + "attention"},
         {},
         {{"heads", size.heads},
          {"kv_heads", size.kv_heads},
          {"head_dim", size.head_dim},
          {"scale", 1.0 / std::sqrt(static_cast<double>(size.head_dim))},
          {"state", a + "cache"}}});
    const std::string o =
        linear(block, a + "o_proj", a + "attention", size.hidden, q_width);
    add({"add",
         p + "attention_residual",
         block,
         {x, o},
         {p + "attention_residual"},
         {},
         {}});
    const std::string m =
        norm(block, p + "post_attention_layernorm", p + "attention_residual");
    const std::string gate =
        linear(block, p + "mlp.gate_proj", m, size.intermediate, size.hidden);
    const std::string up =
        linear(block, p + "mlp.up_proj", m, size.intermediate, size.hidden);
    add({"silu_mul", p + "mlp.act", block, {gate, up}, {p + "mlp.act"}, {}, {}});
    const std::string down =
        linear(block, p + "mlp.down_proj", p + "mlp.act", size.hidden, size.intermediate);
    x = cat("hidden.", i + 1);
    add({"add", p + "residual", block, {p + "attention_residual", down}, {x}, {}, {}});
  }
  norm(kLastBlock, "model.norm", x);
  const std::string head =
      size.tied ? embedding : weight("lm_head.weight", {size.vocabulary, size.hidden});
  add({"linear",
       "lm_head",
       kLastBlock,
       {"model.norm"},
       {"logits"},
       {{"weight", head}},
       {}});
  artifact.config_json = "{\"model_type\": \"llama\"}";
  artifact.provenance.tool_version = kToolVersion;
  return artifact;
}

// Round to nearest of every layer that `chosen` names (all, by default), with the ledger.
inline Artifact quantized(Artifact artifact, const std::string& scheme_text,
                          const std::function<bool(const Node&)>& chosen = {}) {
  const QuantScheme scheme = take(parse_scheme(scheme_text));
  std::set<std::string> parameters;
  for (const Node& node : artifact.program.nodes) {
    for (const auto& [role, tensor] : node.parameters) parameters.insert(tensor);
    for (const Layer& layer : layers_of(node)) {
      const std::string& name = layer.tensor;
      if (artifact.packed.count(name) || (chosen && !chosen(node))) continue;
      const Tensor tensor = artifact.tensors.at(name);
      const std::vector<float> values = take(to_float(tensor));
      const MatrixView<const float> x(values.data(), tensor.rows(), tensor.cols());
      CodedMatrix q = take(choose_scales(x, scheme, ScaleRule{}));
      take(quantize(x, q));
      artifact.packed[name] = take(pack(q, tensor.shape));
      artifact.layers[name].weight = scheme;
      artifact.tensors.erase(name);
    }
  }
  for (const std::string& name : parameters) {
    LedgerEntry entry;
    entry.tensor = name;
    const auto packed = artifact.packed.find(name);
    if (packed != artifact.packed.end()) {
      entry.scheme = to_string(packed->second.scheme);
      entry.method = "rtn";
      entry.parameters = packed->second.rows * packed->second.cols;
      entry.bits = 8.0 * static_cast<double>(packed->second.bytes());
    } else {
      entry.scheme = "f32";
      entry.method = "float";
      entry.reason = "not chosen";
      entry.parameters = artifact.tensors.at(name).numel();
      entry.bits = 32.0 * static_cast<double>(entry.parameters);
    }
    artifact.ledger.entries.push_back(entry);
  }
  return artifact;
}

}  // namespace nibble::sample
