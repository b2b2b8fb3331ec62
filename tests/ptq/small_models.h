// Small programs with seeded weights, for the tests of ptq and qat.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "ptq/module/program_module.h"

namespace nibble::testing {

// A node with one output, which is named like the node.
inline Node node(const std::string& op, const std::string& name, int block,
                 std::vector<std::string> inputs,
                 std::map<std::string, std::string> parameters = {},
                 std::map<std::string, Attribute> attributes = {}) {
  Node made;
  made.op = op;
  made.name = name;
  made.block = block;
  made.inputs = std::move(inputs);
  made.outputs = {name};
  made.parameters = std::move(parameters);
  made.attributes = std::move(attributes);
  return made;
}

inline void add_random(Artifact& artifact, at::Generator& generator,
                       const std::string& name, std::vector<int64_t> shape, double spread,
                       double middle = 0) {
  torch::Tensor values = at::randn(shape, generator, at::kFloat) * spread + middle;
  artifact.tensors[name] = from_torch(values);
}

// conv (no bias) -> batch norm -> relu -> [conv -> batch norm -> + shortcut_pad -> relu]
// -> global average pool -> linear; 3 channels of 8 x 8, `classes` classes.
inline Artifact small_cnn(uint64_t seed, int64_t classes = 5,
                          bool with_batch_norm = true) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  Artifact artifact;
  Program& p = artifact.program;
  p.architecture = "ResNetCIFAR";
  p.inputs = {{"image", DType::f32, {"batch", "3", "8", "8"}}};
  p.outputs = {{"linear", DType::f32, {"batch", std::to_string(classes)}}};
  auto conv = [&](const std::string& name, int block, const std::string& input,
                  int64_t in, int64_t out, int64_t stride) {
    std::map<std::string, std::string> parameters = {{"weight", name + ".weight"}};
    add_random(artifact, generator, name + ".weight", {out, in, 3, 3}, 0.3);
    if (!with_batch_norm) {
      parameters["bias"] = name + ".bias";
      add_random(artifact, generator, name + ".bias", {out}, 0.2);
    }
    p.nodes.push_back(node("conv2d", name, block, {input}, parameters,
                           {{"stride", std::vector<int64_t>{stride, stride}},
                            {"padding", std::vector<int64_t>{1, 1}},
                            {"groups", int64_t{1}}}));
  };
  auto norm = [&](const std::string& name, int block, const std::string& input,
                  int64_t channels) {
    if (!with_batch_norm) return input;
    std::map<std::string, std::string> parameters;
    for (const char* role : {"weight", "bias", "running_mean", "running_var"}) {
      parameters[role] = name + "." + role;
    }
    add_random(artifact, generator, name + ".weight", {channels}, 0.2, 1.0);
    add_random(artifact, generator, name + ".bias", {channels}, 0.2);
    add_random(artifact, generator, name + ".running_mean", {channels}, 0.1);
    artifact.tensors[name + ".running_var"] =
        from_torch(at::rand({channels}, generator, at::kFloat) + 0.5);
    p.nodes.push_back(
        node("batch_norm", name, block, {input}, parameters, {{"epsilon", 1e-5}}));
    return name;
  };
  conv("conv1", kFirstBlock, "image", 3, 4, 1);
  p.nodes.push_back(
      node("relu", "relu1", kFirstBlock, {norm("bn1", kFirstBlock, "conv1", 4)}));
  conv("layer1.0.conv1", 0, "relu1", 4, 8, 2);
  p.nodes.push_back(
      node("relu", "layer1.0.relu1", 0, {norm("layer1.0.bn1", 0, "layer1.0.conv1", 8)}));
  conv("layer1.0.conv2", 0, "layer1.0.relu1", 8, 8, 1);
  const std::string branch = norm("layer1.0.bn2", 0, "layer1.0.conv2", 8);
  p.nodes.push_back(node(
      "shortcut_pad", "layer1.0.shortcut", 0, {"relu1"}, {},
      {{"stride", int64_t{2}}, {"pad_before", int64_t{2}}, {"pad_after", int64_t{2}}}));
  p.nodes.push_back(node("add", "layer1.0.add", 0, {branch, "layer1.0.shortcut"}));
  p.nodes.push_back(node("relu", "layer1.0.relu2", 0, {"layer1.0.add"}));
  p.nodes.push_back(node("global_average_pool", "pool", kLastBlock, {"layer1.0.relu2"}));
  p.nodes.push_back(node("linear", "linear", kLastBlock, {"pool"},
                         {{"weight", "linear.weight"}, {"bias", "linear.bias"}}));
  add_random(artifact, generator, "linear.weight", {classes, 8}, 0.4);
  add_random(artifact, generator, "linear.bias", {classes}, 0.2);
  artifact.image_mean = {0.5f, 0.5f, 0.5f};
  artifact.image_std = {0.25f, 0.25f, 0.25f};
  artifact.config_json = "{}";
  return artifact;
}

// A decoder of two layers, hidden 16, 4 heads of 4 over 2 KV heads, vocabulary 23, tied.
inline Artifact small_llama(uint64_t seed, bool interleaved = false) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  constexpr int64_t kHidden = 16, kIntermediate = 24, kHeads = 4, kKvHeads = 2, kHead = 4;
  Artifact artifact;
  Program& p = artifact.program;
  p.architecture = "LlamaForCausalLM";
  p.context_length = 32;
  p.vocabulary = 23;
  p.inputs = {{"input_ids", DType::i32, {"batch", "sequence"}}};
  p.outputs = {{"lm_head", DType::f32, {"batch", "sequence", "23"}}};
  auto linear = [&](const std::string& name, int block, const std::string& input,
                    int64_t in, int64_t out) {
    add_random(artifact, generator, name + ".weight", {out, in}, 0.25);
    p.nodes.push_back(
        node("linear", name, block, {input}, {{"weight", name + ".weight"}}));
  };
  auto norm = [&](const std::string& name, int block, const std::string& input) {
    add_random(artifact, generator, name + ".weight", {kHidden}, 0.1, 1.0);
    p.nodes.push_back(node("rms_norm", name, block, {input},
                           {{"weight", name + ".weight"}}, {{"epsilon", 1e-5}}));
  };
  auto turn = [&](const std::string& name, int block, const std::string& input) {
    p.nodes.push_back(node("rope", name, block, {input}, {},
                           {{"head_dim", kHead},
                            {"theta", 10000.0},
                            {"interleaved", int64_t{interleaved}}}));
  };
  add_random(artifact, generator, "model.embed_tokens.weight", {p.vocabulary, kHidden},
             1.0);
  p.nodes.push_back(node("embedding", "model.embed_tokens", kFirstBlock, {"input_ids"},
                         {{"weight", "model.embed_tokens.weight"}}));
  std::string x = "model.embed_tokens";
  for (int layer = 0; layer < 2; ++layer) {
    const std::string at = "model.layers." + std::to_string(layer);
    const std::string attention = at + ".self_attn";
    p.states.push_back({attention + ".cache", kKvHeads, kHead});
    norm(at + ".input_layernorm", layer, x);
    linear(attention + ".q_proj", layer, at + ".input_layernorm", kHidden,
           kHeads * kHead);
    linear(attention + ".k_proj", layer, at + ".input_layernorm", kHidden,
           kKvHeads * kHead);
    linear(attention + ".v_proj", layer, at + ".input_layernorm", kHidden,
           kKvHeads * kHead);
    turn(attention + ".q_rope", layer, attention + ".q_proj");
    turn(attention + ".k_rope", layer, attention + ".k_proj");
    p.nodes.push_back(
        node("attention", attention, layer,
             {attention + ".q_rope", attention + ".k_rope", attention + ".v_proj"}, {},
             {{"heads", kHeads},
              {"kv_heads", kKvHeads},
              {"head_dim", kHead},
              {"scale", 0.5},
              {"state", attention + ".cache"}}));
    linear(attention + ".o_proj", layer, attention, kHeads * kHead, kHidden);
    p.nodes.push_back(node("add", at + ".add1", layer, {x, attention + ".o_proj"}));
    norm(at + ".post_attention_layernorm", layer, at + ".add1");
    linear(at + ".mlp.gate_proj", layer, at + ".post_attention_layernorm", kHidden,
           kIntermediate);
    linear(at + ".mlp.up_proj", layer, at + ".post_attention_layernorm", kHidden,
           kIntermediate);
    p.nodes.push_back(node("silu_mul", at + ".mlp.act", layer,
                           {at + ".mlp.gate_proj", at + ".mlp.up_proj"}));
    linear(at + ".mlp.down_proj", layer, at + ".mlp.act", kIntermediate, kHidden);
    p.nodes.push_back(
        node("add", at + ".add2", layer, {at + ".add1", at + ".mlp.down_proj"}));
    x = at + ".add2";
  }
  norm("model.norm", kLastBlock, x);
  p.nodes.push_back(node("linear", "lm_head", kLastBlock, {"model.norm"},
                         {{"weight", "model.embed_tokens.weight"}}));
  artifact.config_json = "{}";
  return artifact;
}

}  // namespace nibble::testing
