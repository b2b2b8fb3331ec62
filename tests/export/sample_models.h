// Small seeded models for the export and interop tests: a Llama decoder (sample_llama.h)
// and a residual net with static activations.
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

#include "kernels/program/shape.h"
#include "tests/export/sample_llama.h"

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
