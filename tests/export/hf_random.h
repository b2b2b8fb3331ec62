// Seeded artifacts for round trips through formats of transformers: a chain of linear
// layers of random sizes under schemes of the format's, and what a format must give back.
#pragma once

#include <filesystem>
#include <functional>
#include <numeric>

#include "export/exporter.h"
#include "tests/export/sample_models.h"

namespace nibble::sample {

struct RandomModel {
  std::vector<std::string> schemes;  // one is drawn a layer
  int64_t multiple = 1;              // of rows and columns
  std::string input = "";            // of every layer; "": float
  bool permuted = false;             // some layers have their columns in another order
  int64_t most = 160;                // rows or columns, at most
  int share = 100;                   // percent of round_trips() that it takes
};

inline Artifact random_model(uint64_t seed, const RandomModel& model) {
  SplitMix64 random(seed);
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>(random.below(static_cast<uint64_t>(n)));
  };
  const auto size = [&] {
    return model.multiple *
           (1 + below(std::max<int64_t>(model.most / model.multiple, 1)));
  };
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "Chain";
  program.vocabulary = 5 + below(9);
  program.context_length = 8;
  program.inputs = {{"input_ids", DType::i64, {"batch", "sequence"}}};
  int64_t features = size();
  program.nodes.push_back({"embedding",
                           "embed",
                           kFirstBlock,
                           {"input_ids"},
                           {"embed"},
                           {{"weight", "embed.weight"}},
                           {{"features", features}}});
  artifact.tensors["embed.weight"] =
      random_tensor({program.vocabulary, features}, 1.0, random);
  std::string x = "embed";
  const int64_t layers = 1 + below(3);
  for (int64_t i = 0; i < layers; ++i) {
    const std::string name = cat("layers.", i, ".proj"), weight = name + ".weight";
    const int64_t out = size();
    Node node{"linear", name, static_cast<int>(i), {x}, {name}, {{"weight", weight}}, {}};
    node.attributes["out_features"] = out;
    if (random.below(2)) {
      node.parameters["bias"] = name + ".bias";
      artifact.tensors[name + ".bias"] = random_tensor({out}, 0.1, random);
    }
    program.nodes.push_back(node);
    const Tensor tensor =
        random_tensor({out, features}, 1.0, random, random.uniform() - 0.5);
    const std::string& text = model.schemes[random.below(model.schemes.size())];
    // The first is always quantized; a float layer in between must stay one.
    if (i > 0 && random.below(4) == 0) {
      artifact.tensors[weight] = tensor;
    } else {
      const QuantScheme scheme = take(parse_scheme(text));
      const std::vector<float> values = take(to_float(tensor));
      const MatrixView<const float> view(values.data(), out, features);
      CodedMatrix q = take(choose_scales(view, scheme, ScaleRule{}));
      EXPECT_TRUE(quantize(view, q).ok());
      artifact.packed[weight] = take(pack(q, tensor.shape));
      LayerScheme& layer = artifact.layers[weight];
      layer.weight = scheme;
      if (!model.input.empty()) {
        ActivationScheme input;
        input.scheme = take(parse_scheme(model.input));
        input.dynamic = input.scheme.scales[0].block.kind == Block::Kind::row;
        if (!input.dynamic) input.scale = static_cast<float>(0.01 + random.uniform());
        layer.input = input;
      }
      if (model.permuted && random.below(2)) {
        std::vector<int32_t> order(static_cast<size_t>(features));
        std::iota(order.begin(), order.end(), 0);
        for (size_t c = order.size(); c > 1; --c) {
          std::swap(order[c - 1], order[random.below(c)]);
        }
        layer.extras.permutation = weight + ".permutation";
        artifact.tensors[layer.extras.permutation] =
            make_tensor({features}, std::span<const int32_t>(order));
      }
    }
    x = name;
    features = out;
  }
  program.outputs = {{x, DType::f32, {"batch", "sequence", std::to_string(features)}}};
  artifact.config_json = R"({"architectures":["Chain"],"model_type":"llama"})";
  artifact.tokenizer["tokenizer.json"] = Bytes::copy_of("{}", 2);
  return artifact;
}

// 50, or 1,000 where the environment asks for the long round trips (ctest -L long).
inline uint64_t round_trips() {
  const char* text = std::getenv("NIBBLE_RANDOM_ARTIFACTS");
  return text == nullptr ? 50 : std::strtoull(text, nullptr, 10);
}

// Writes, reads back and compares artifacts of seeds 0 .. round_trips() - 1; the writer
// compares as well, so the reader is asked a second time for what it gives a caller.
inline void expect_round_trips(const std::string& format, const RandomModel& model,
                               const ExportOptions& options = {}) {
  const Exporter* exporter = take(find_exporter(format));
  const auto directory = fresh_directory(format);
  ExportOptions again = options;
  again.overwrite = true;
  const uint64_t trips = (round_trips() * static_cast<uint64_t>(model.share) + 99) / 100;
  for (uint64_t seed = 0; seed < trips; ++seed) {
    SCOPED_TRACE(cat(format, ", seed ", seed));
    const Artifact artifact = random_model(seed, model);
    const Status written = exporter->write(artifact, directory, again);
    ASSERT_TRUE(written.ok()) << written.message();
    const Decoded decoded = take(exporter->read(directory));
    const Status same = check_decoded(artifact, decoded);
    ASSERT_TRUE(same.ok()) << same.message();
    for (const auto& [name, layer] : artifact.layers) {
      ASSERT_EQ(decoded.inputs.count(name), layer.input ? 1u : 0u) << name;
    }
  }
  std::filesystem::remove_all(directory);
}

}  // namespace nibble::sample
