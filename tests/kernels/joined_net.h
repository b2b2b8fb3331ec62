// A net with a join, a pool and a softmax, float and with static integer activations.
#pragma once

#include "tests/export/sample_models.h"

namespace nibble::sample {

// Two convolutions of one image, joined and pooled: [n, 2, 6, 6] -> [n, 5].
inline Artifact joined_net(uint64_t seed) {
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "ONNX";
  program.inputs = {{"x", DType::f32, {"batch", "2", "6", "6"}}};
  program.outputs = {{"y", DType::f32, {"batch", "5"}}};
  SplitMix64 random(seed);
  const auto conv = [&](const char* name, int64_t outputs, int64_t kernel, int64_t pad) {
    artifact.tensors[cat(name, ".weight")] =
        random_tensor({outputs, 2, kernel, kernel}, 0.5, random);
    program.nodes.push_back({"conv2d", name, 0, {"x"}, {name},
                             {{"weight", cat(name, ".weight")}},
                             {{"padding", std::vector<int64_t>{pad, pad}}}});
    program.nodes.push_back(
        {"relu", cat(name, ".relu"), 0, {name}, {cat(name, ".relu")}, {}, {}});
  };
  conv("a", 2, 1, 0);
  conv("b", 3, 3, 1);
  program.nodes.push_back({"concat", "join", 0, {"a.relu", "b.relu"}, {"join"}, {}, {}});
  program.nodes.push_back({"max_pool", "pool", 0, {"join"}, {"pool"}, {},
                           {{"kernel", std::vector<int64_t>{3, 3}},
                            {"stride", std::vector<int64_t>{2, 2}},
                            {"padding", std::vector<int64_t>{1, 1}}}});
  program.nodes.push_back({"global_average_pool", "mean", 0, {"pool"}, {"mean"}, {}, {}});
  program.nodes.push_back({"softmax", "softmax", 0, {"mean"}, {"y"}, {}, {}});
  artifact.config_json = "{}";
  return artifact;
}

inline Artifact quantized_joined_net(uint64_t seed) {
  Artifact artifact = quantized(joined_net(seed), "int8n/r@f32");
  const auto put = [&](const char* value, const char* scheme, float scale) {
    artifact.activations[value] =
        ActivationScheme{.scheme = take(parse_scheme(scheme)), .scale = scale};
  };
  put("x", kSignedActivation, 0.005f);
  put("a.relu", kUnsignedActivation, 0.003f);
  put("b.relu", kUnsignedActivation, 0.007f);
  put("join", kUnsignedActivation, 0.008f);
  put("pool", kUnsignedActivation, 0.008f);
  return artifact;
}

}  // namespace nibble::sample
