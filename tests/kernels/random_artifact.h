// Small artifacts for tests of reading and writing: an embedding and a chain of linear
// layers of odd sizes, each under a scheme of the caller's, with every field filled.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/base/splitmix64.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

inline const std::vector<std::string>& artifact_schemes() {
  static const std::vector<std::string> schemes = {
      "int4/g32@f16",
      "uint4/g128@f16+z/g128@uint4",
      "int8n/r@f32",
      "e4m3/b16x16@f32",
      "nf4/f64@f32",
      "nf4/f64@dyn8+o/f16384@f32",
      "e2m1/g32@e8m0",
      "e2m1/g16@e4m3/t@f32",
      "uint4/g32@uint6/g256@f16+m/g32@uint6/g256@f16",
      "uint2/b32x1@f16+m/b32x1@f16",
      "int3/c@bf16",
      "int5/t@f32",
      "ternary/r@f32",
      "binary/r@f16",
  };
  return schemes;
}

inline Tensor random_tensor(std::vector<int64_t> shape, SplitMix64& random) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(2 * random.uniform() - 1);
  return make_tensor(std::move(shape), std::span<const float>(values));
}

inline Result<PackedTensor> pack_as(const Tensor& tensor, const std::string& scheme) {
  NIBBLE_ASSIGN_OR_RETURN(const QuantScheme parsed, parse_scheme(scheme));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(tensor));
  const MatrixView<const float> x(values.data(), tensor.rows(), tensor.cols());
  // Scales of both signs, where the scheme has them.
  NIBBLE_ASSIGN_OR_RETURN(CodedMatrix coded,
                          choose_scales(x, parsed, ScaleRule{.full_range = true}));
  NIBBLE_RETURN_IF_ERROR(quantize(x, coded));
  return pack(coded, tensor.shape);
}

// schemes: one a linear layer; "" leaves it float.
inline Result<Artifact> random_artifact(uint64_t seed,
                                        const std::vector<std::string>& schemes) {
  SplitMix64 random(seed);
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "Chain";
  program.vocabulary = 5 + static_cast<int64_t>(random.below(9));
  program.context_length = 8;
  int64_t features = 1 + static_cast<int64_t>(random.below(70));
  program.inputs = {{"input_ids", DType::i64, {"batch", "sequence"}}};
  program.nodes.push_back({"embedding",
                           "embed",
                           kFirstBlock,
                           {"input_ids"},
                           {"embed"},
                           {{"weight", "embed.weight"}},
                           {{"features", features}}});
  artifact.tensors["embed.weight"] =
      random_tensor({program.vocabulary, features}, random);
  std::string x = "embed";
  for (size_t i = 0; i < schemes.size(); ++i) {
    const int64_t out = 1 + static_cast<int64_t>(random.below(70));
    const std::string name = cat("layers.", i);
    program.nodes.push_back({"linear",
                             name,
                             static_cast<int>(i),
                             {x},
                             {name},
                             {{"weight", name + ".weight"}, {"bias", name + ".bias"}},
                             {{"out_features", out}}});
    const Tensor weight = random_tensor({out, features}, random);
    artifact.tensors[name + ".bias"] = random_tensor({out}, random);
    if (schemes[i].empty()) {
      artifact.tensors[name + ".weight"] = weight;
    } else {
      NIBBLE_ASSIGN_OR_RETURN(artifact.packed[name + ".weight"],
                              pack_as(weight, schemes[i]));
      LayerScheme layer;
      layer.weight = artifact.packed[name + ".weight"].scheme;
      if (random.below(2)) {
        ActivationScheme input;
        NIBBLE_ASSIGN_OR_RETURN(input.scheme, parse_scheme("int8n/r@f32"));
        input.dynamic = true;
        layer.input = input;
      }
      if (random.below(2)) {
        std::vector<int32_t> order(static_cast<size_t>(features));
        for (size_t c = 0; c < order.size(); ++c) order[c] = static_cast<int32_t>(c);
        for (size_t c = order.size(); c > 1; --c)
          std::swap(order[c - 1], order[random.below(c)]);
        layer.extras.permutation = name + ".weight.permutation";
        artifact.tensors[layer.extras.permutation] =
            make_tensor({features}, std::span<const int32_t>(order));
      }
      artifact.layers[name + ".weight"] = layer;
    }
    x = name;
    features = out;
  }
  program.outputs = {{x, DType::f32, {"batch", "sequence", std::to_string(features)}}};
  ActivationScheme activation;
  NIBBLE_ASSIGN_OR_RETURN(activation.scheme, parse_scheme(kUnsignedActivation));
  activation.scale = static_cast<float>(0.001 + random.uniform());
  activation.zero_point = static_cast<int>(random.below(200));
  artifact.activations["embed"] = activation;
  artifact.config_json = "{\"architectures\": [\"Chain\"]}\n";
  artifact.tokenizer["tokenizer.json"] = Bytes::copy_of("{\"a\": \"\xc3\xa9\"}", 11);
  artifact.image_mean = {0.485f, 0.1f};
  artifact.image_std = {0.229f, 0.3f};
  artifact.provenance = {{{"model.bin", std::string(64, 'a')}},
                         "method: rtn\nlayers: [\"*\"]\n",
                         "text, 3 sequences",
                         kToolVersion};
  for (const Node& node : program.nodes) {
    for (const auto& [role, tensor] : node.parameters) {
      LedgerEntry entry;
      entry.tensor = tensor;
      const auto packed = artifact.packed.find(tensor);
      const bool is_packed = packed != artifact.packed.end();
      entry.scheme = is_packed ? to_string(packed->second.scheme) : "f32";
      entry.method = is_packed ? "rtn" : "float";
      if (!is_packed) entry.reason = "not planned";
      entry.parameters = 1 + static_cast<int64_t>(random.below(1000));
      entry.bits = random.uniform() * 1e6;
      entry.error = random.uniform() / 3;
      if (is_packed) entry.rtn_error = 1.5 * entry.error;  // absent where it stays -1
      if (is_packed && entry.error < 0.2) entry.rtn_output_error = entry.error / 3;
      artifact.ledger.entries.push_back(entry);
    }
  }
  std::sort(
      artifact.ledger.entries.begin(), artifact.ledger.entries.end(),
      [](const LedgerEntry& a, const LedgerEntry& b) { return a.tensor < b.tensor; });
  return artifact;
}

}  // namespace nibble
