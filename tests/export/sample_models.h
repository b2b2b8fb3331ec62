// Small seeded models for the export and interop tests: a Llama decoder, a residual net
// with static activations, and round-to-nearest quantization in a few lines, so that
// these tests do not lean on ptq.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/base/splitmix64.h"
#include "kernels/program/layers.h"
#include "kernels/program/shape.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble::sample {

// A directory of this test's own, empty.
inline std::filesystem::path fresh_directory(const std::string& name) {
  const auto path =
      std::filesystem::temp_directory_path() /
      cat("nibble_", ::testing::UnitTest::GetInstance()->current_test_info()->name(), "_",
          name, "_", getpid());
  std::filesystem::remove_all(path);
  return path;
}

template <class T>
T take(Result<T> result) {
  if (!result.ok())
    throw std::runtime_error(result.status().message());  // fails the test
  return std::move(result).value();
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
    const std::string q = linear(block, a + "q_proj", n, q_width, size.hidden);
    const std::string k = linear(block, a + "k_proj", n, kv_width, size.hidden);
    const std::string v = linear(block, a + "v_proj", n, kv_width, size.hidden);
    for (const std::string& rotated : {q, k}) {
      add({"rope",
           rotated + ".rope",
           block,
           {rotated},
           {rotated + ".rope"},
           {},
           {{"head_dim", size.head_dim},
            {"theta", 10000.0},
            {"interleaved", static_cast<int64_t>(size.interleaved)}}});
    }
    add({"attention",
         a + "attention",
         block,
         {q + ".rope", k + ".rope", v},
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

// Three convolutions (the second strided, beside a shortcut), a pooled linear head: every
// op of a CIFAR ResNet after batch-norm folding. Input [batch, 3, 8, 8], 10 classes.
inline Artifact residual_net(uint64_t seed) {
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "ResNetCIFAR";
  program.inputs = {{"images", DType::f32, {"batch", "3", "8", "8"}}};
  program.outputs = {{"logits", DType::f32, {"batch", "10"}}};
  SplitMix64 random(seed);
  const auto conv = [&](int block, const std::string& name, const std::string& x,
                        int64_t o, int64_t c, int64_t stride) {
    artifact.tensors[name + ".weight"] =
        random_tensor({o, c, 3, 3}, 1.7 / std::sqrt(static_cast<double>(9 * c)), random);
    artifact.tensors[name + ".bias"] = random_tensor({o}, 0.2, random);
    program.nodes.push_back({"conv2d",
                             name,
                             block,
                             {x},
                             {name},
                             {{"weight", name + ".weight"}, {"bias", name + ".bias"}},
                             {{"stride", std::vector<int64_t>{stride, stride}},
                              {"padding", std::vector<int64_t>{1, 1}},
                              {"groups", int64_t{1}}}});
  };
  const auto simple = [&](const char* op, int block, const std::string& name,
                          std::vector<std::string> inputs) {
    program.nodes.push_back({op, name, block, std::move(inputs), {name}, {}, {}});
  };
  conv(kFirstBlock, "conv1", "images", 6, 3, 1);
  simple("relu", kFirstBlock, "relu1", {"conv1"});
  conv(0, "layer1.0.conv1", "relu1", 12, 6, 2);
  simple("relu", 0, "layer1.0.relu1", {"layer1.0.conv1"});
  conv(0, "layer1.0.conv2", "layer1.0.relu1", 12, 12, 1);
  program.nodes.push_back(
      {"shortcut_pad",
       "layer1.0.shortcut",
       0,
       {"relu1"},
       {"layer1.0.shortcut"},
       {},
       {{"stride", int64_t{2}}, {"pad_before", int64_t{3}}, {"pad_after", int64_t{3}}}});
  simple("add", 0, "layer1.0.add", {"layer1.0.conv2", "layer1.0.shortcut"});
  simple("relu", 0, "layer1.0.relu2", {"layer1.0.add"});
  simple("global_average_pool", kLastBlock, "pool", {"layer1.0.relu2"});
  artifact.tensors["linear.weight"] = random_tensor({10, 12}, 1.0, random);
  artifact.tensors["linear.bias"] = random_tensor({10}, 0.2, random);
  program.nodes.push_back({"linear",
                           "linear",
                           kLastBlock,
                           {"pool"},
                           {"logits"},
                           {{"weight", "linear.weight"}, {"bias", "linear.bias"}},
                           {}});
  artifact.config_json = "{}";
  artifact.image_mean = {0.485f, 0.456f, 0.406f};
  artifact.image_std = {0.229f, 0.224f, 0.225f};
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
      const Status status = quantize(x, q);
      EXPECT_TRUE(status.ok()) << status.message();
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

// Static activations for residual_net by the rules of runtime/integer_node.h: a
// convolution that a ReLU alone reads has none of its own, the ReLU's value is unsigned.
// maximum: the largest magnitude of each value.
inline void add_activations(Artifact& artifact,
                            const std::function<double(const std::string&)>& maximum,
                            const std::string& signed_scheme = kSignedActivation,
                            const std::string& unsigned_scheme = kUnsignedActivation) {
  const auto add = [&](const std::string& value, bool is_signed) {
    ActivationScheme activation;
    activation.scheme = take(parse_scheme(is_signed ? signed_scheme : unsigned_scheme));
    activation.scale =
        static_cast<float>(maximum(value) / code_highest(activation.scheme));
    artifact.activations[value] = activation;
  };
  const Program& program = artifact.program;
  add(program.inputs.front().name, true);
  std::map<std::string, bool> is_signed;
  for (const Node& node : program.nodes) {
    const std::string& value = node.outputs.front();
    const auto readers = program.consumers(value);
    if (value == program.outputs.front().name) continue;
    if (readers.size() == 1 && readers.front()->op == "relu") continue;
    if (node.op == "shortcut_pad") {
      artifact.activations[value] = artifact.activations.at(node.inputs.front());
      is_signed[value] = is_signed[node.inputs.front()];
      continue;
    }
    is_signed[value] = node.op == "relu"                  ? false
                       : node.op == "global_average_pool" ? is_signed[node.inputs.front()]
                                                          : true;
    add(value, is_signed[value]);
  }
}

}  // namespace nibble::sample
