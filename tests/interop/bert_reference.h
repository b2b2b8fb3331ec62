// What transformers makes of encoders, for the tests that compare with it: a tiny random
// BERT of each kind, and the packaged MiniLM. Python runs it (bert_run.py).
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tests/export/sample_models.h"

namespace nibble::bert {

using Sequences = std::vector<std::vector<int32_t>>;

struct Ran {
  int status = 0;
  std::string output;
};

inline Ran run_python(const std::string& arguments) {
  const std::string command = std::string(NIBBLE_PYTHON) + " " + NIBBLE_SOURCE_DIR +
                              "/tests/interop/bert_run.py " + arguments + " 2>&1";
  Ran ran;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return {-1, "popen failed"};
  char buffer[4096];
  while (fgets(buffer, sizeof(buffer), pipe) != nullptr) ran.output += buffer;
  ran.status = WEXITSTATUS(pclose(pipe));
  return ran;
}

inline std::vector<float> read_floats(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
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

// max |a - b| / max |b|
inline double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size() || b.empty()) return INFINITY;
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(a[i]) - b[i]));
    size = std::max(size, std::abs(static_cast<double>(b[i])));
  }
  return difference / size;
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
