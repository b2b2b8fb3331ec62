// Tiny random checkpoints that transformers wrote, with its logits
// (tests/interop/transformers_run.py): what the decoder tests are held against.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "recipes/models/load_model.h"
#include "tests/export/sample_models.h"

namespace nibble::transformers {

struct Ran {
  int status = 0;
  std::string output;
};

// Through a shell; errors are output too.
inline Ran run_command(const std::string& command) {
  Ran ran;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return {-1, "popen failed"};
  char buffer[4096];
  while (fgets(buffer, sizeof(buffer), pipe) != nullptr) ran.output += buffer;
  ran.status = WEXITSTATUS(pclose(pipe));
  return ran;
}

inline Ran run_python(const std::string& script, const std::string& arguments) {
  return run_command(std::string(NIBBLE_PYTHON) + " " + NIBBLE_SOURCE_DIR +
                     "/tests/interop/" + script + " " + arguments);
}

template <class T>
std::vector<T> read_values(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

// max |a - b| / max |b|
inline double relative_difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size() || b.empty()) return 1e30;
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(d <= difference)) difference = d;  // NaN stays
    size = std::max(size, std::abs(static_cast<double>(b[i])));
  }
  return difference / size;
}

// Every case in a directory of its own, removed in the end. Skips the test without
// Python's packages.
class Checkpoints : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = sample::fresh_directory("transformers");
    std::filesystem::create_directories(directory_);
    const Ran ran = run_python("transformers_run.py", "write " + directory_.string());
    if (ran.status == 77) {
      GTEST_SKIP() << "Python cannot import what it needs: " << ran.output;
    }
    ASSERT_EQ(ran.status, 0) << ran.output;
    for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
      if (entry.is_directory()) cases_.insert(entry.path().filename().string());
    }
    ASSERT_GE(cases_.size(), 12u) << ran.output;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::filesystem::path folder(const std::string& name) const {
    return directory_ / name;
  }
  Artifact load(const std::string& name) const {
    return sample::take(load_model(folder(name), {}));
  }
  std::vector<int32_t> ids(const std::string& name) const {
    return read_values<int32_t>(folder(name) / "input_ids.i32");
  }
  std::vector<float> logits(const std::string& name) const {
    return read_values<float>(folder(name) / "logits.f32");
  }

  std::filesystem::path directory_;
  std::set<std::string> cases_;
};

// Logits of all positions: a prefill of `first` tokens, then token by token.
inline std::vector<float> runtime_logits(const Artifact& artifact,
                                         const std::vector<int32_t>& ids, size_t first) {
  Executor executor = sample::take(
      Executor::create(std::make_shared<const Artifact>(artifact), ExecutorOptions{}));
  const int64_t vocabulary = artifact.program.vocabulary;
  auto cache = sample::take(executor.make_cache(static_cast<int64_t>(ids.size())));
  std::vector<float> logits(ids.size() * static_cast<size_t>(vocabulary));
  for (size_t done = 0; done < ids.size();) {
    const size_t count = done == 0 ? first : 1;
    const Status status = executor.forward(
        std::span<const int32_t>(ids).subspan(done, count), *cache,
        MatrixView<float>(logits.data() + done * static_cast<size_t>(vocabulary),
                          static_cast<int64_t>(count), vocabulary));
    if (!status.ok()) throw std::runtime_error(status.message());
    done += count;
  }
  return logits;
}

}  // namespace nibble::transformers
