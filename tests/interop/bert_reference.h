// What transformers makes of encoders, for the tests that compare with it: a tiny random
// BERT of each kind, and the packaged MiniLM. Python runs it (bert_run.py). And what our
// runtime makes of them.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tests/interop/transformers.h"

namespace nibble::bert {

using Sequences = std::vector<std::vector<int32_t>>;

using transformers::Ran;
using transformers::relative_difference;

inline Ran run_python(const std::string& arguments) {
  return transformers::run_python("bert_run.py", arguments);
}

inline std::vector<float> read_floats(const std::filesystem::path& path) {
  return transformers::read_values<float>(path);
}

// bert_run.py's IDS.
inline Sequences tiny_ids() {
  Sequences sequences;
  for (const int n : {1, 2, 5, 13, 16, 24}) {
    sequences.emplace_back();
    for (int i = 0; i < n; ++i) sequences.back().push_back((7 * i + 3 * n) % 61);
  }
  return sequences;
}

// What one run of the reference leaves: where the model is, ids, and expected values.
struct Reference {
  std::filesystem::path model;
  Sequences ids;
  std::vector<float> values;
};

class Encoders : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = sample::fresh_directory("bert");
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string file(const char* name) const { return (directory_ / name).string(); }

  // Skips (and returns false) where a Python package is missing.
  // kind -> the model: plain, heads (BertForPreTraining), tanh, relu (activations).
  bool tiny(std::map<std::string, Reference>& references) {
    const Ran ran = run_python(cat("tiny ", directory_.string()));
    for (const char* kind : {"plain", "heads", "tanh", "relu"}) {
      references[kind] = {directory_ / kind, tiny_ids(), read_floats(file(kind) + ".f32")};
    }
    return finish(ran);
  }
  bool minilm(Reference& reference) {
    const Ran ran = run_python(cat("minilm ", file("out")));
    std::istringstream lines(ran.output);
    std::string line;
    while (std::getline(lines, line)) {
      if (line.find("/model") != std::string::npos) {
        reference.model = line;
      } else if (!line.empty() && line.find_first_not_of("0123456789,") == std::string::npos) {
        reference.ids.emplace_back();
        std::istringstream numbers(line);
        for (std::string id; std::getline(numbers, id, ',');) {
          reference.ids.back().push_back(std::stoi(id));
        }
      }
    }
    reference.values = read_floats(file("out"));
    return finish(ran);
  }

  // Each sequence alone (batch false), or all in one call.
  std::vector<float> ours(const Artifact& artifact, const Sequences& ids, bool batch,
                          const Sequences& types = {}) {
    Executor executor =
        sample::take(Executor::create(std::make_shared<const Artifact>(artifact), {}));
    std::vector<float> result;
    std::vector<int32_t> tokens, token_types;
    std::vector<int64_t> lengths;
    for (size_t i = 0; i < ids.size(); ++i) {
      tokens.insert(tokens.end(), ids[i].begin(), ids[i].end());
      if (!types.empty()) {
        token_types.insert(token_types.end(), types[i].begin(), types[i].end());
      }
      lengths.push_back(static_cast<int64_t>(ids[i].size()));
      if (batch && i + 1 < ids.size()) continue;
      const int64_t rows = executor.embedding_rows(lengths);
      const int64_t width = executor.embedding_features();
      std::vector<float> values(static_cast<size_t>(rows * width));
      const Status status = executor.encode(tokens, lengths, token_types,
                                            MatrixView<float>(values.data(), rows, width));
      EXPECT_TRUE(status.ok()) << status.message();
      result.insert(result.end(), values.begin(), values.end());
      tokens.clear();
      token_types.clear();
      lengths.clear();
    }
    return result;
  }

  static Artifact w8a8(Artifact artifact) {
    artifact = sample::quantized(std::move(artifact), "int8n/r@f32");
    for (const Node& node : artifact.program.nodes) {
      if (node.op != "linear") continue;
      ActivationScheme input;
      input.scheme = sample::take(parse_scheme("int8n/r@f32"));
      input.dynamic = true;
      artifact.layers.at(node.parameter("weight")).input = input;
    }
    return artifact;
  }

  std::filesystem::path directory_;

 private:
  bool finish(const Ran& ran) {
    skipped_ = ran.status == 77 ? ran.output : "";
    if (ran.status == 77) return false;
    EXPECT_EQ(ran.status, 0) << ran.output;
    return true;
  }

 protected:
  std::string skipped_;  // why the last call returned false
};

}  // namespace nibble::bert
