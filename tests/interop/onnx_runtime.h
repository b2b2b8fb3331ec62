// What the tests of exported graphs in ONNX Runtime share: Python runs the other side
// (onnx_run.py); without its packages they skip and say what is missing.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "export/exporter.h"
#include "tests/export/sample_models.h"
#include "tests/interop/transformers.h"

namespace nibble::onnx_runtime {

using sample::take;
using transformers::relative_difference;
using transformers::Ran;

// Both sides sum in f32 in their own order; 1.2e-6 is what was measured.
inline constexpr double kLogits = 2e-5;

inline Ran run_python(const std::string& arguments) {
  return transformers::run_python("onnx_run.py", arguments);
}

inline std::vector<float> read_floats(const std::filesystem::path& path) {
  return transformers::read_values<float>(path);
}

inline int32_t argmax(std::span<const float> row) {
  return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

class Fixture : public ::testing::Test {
 protected:
  void SetUp() override {
    static const Ran ran = run_python("check /nonexistent");  // imports, then fails
    if (ran.status == 77)
      GTEST_SKIP() << "Python cannot import what it needs: " << ran.output;
    directory_ = sample::fresh_directory("ort");
  }
  void TearDown() override {
    std::filesystem::remove_all(directory_);
    std::filesystem::remove(file("in"));
    std::filesystem::remove(file("out"));
  }
  std::string file(const char* suffix) const {
    return directory_.string() + "." + suffix;
  }

  // Writes the model and has the checker look at it.
  void write(const Artifact& artifact, ExportOptions options = {}) {
    options.overwrite = true;
    const Status status =
        take(find_exporter("onnx"))->write(artifact, directory_, options);
    ASSERT_TRUE(status.ok()) << status.message();
    const Ran checked = run_python("check " + directory_.string());
    ASSERT_EQ(checked.status, 0) << checked.output;
  }

  std::vector<float> run_images(std::span<const float> images,
                                const std::vector<int64_t>& shape) {
    std::ofstream(file("in"), std::ios::binary)
        .write(reinterpret_cast<const char*>(images.data()),
               static_cast<std::streamsize>(images.size_bytes()));
    std::string dims;
    for (const int64_t dim : shape) dims += cat(dims.empty() ? "" : ",", dim);
    const Ran ran = run_python(cat("images ", directory_.string(), " ", file("in"), " ",
                                   dims, " ", file("out")));
    EXPECT_EQ(ran.status, 0) << ran.output;
    return read_floats(file("out"));
  }

  std::filesystem::path directory_;
};

}  // namespace nibble::onnx_runtime
