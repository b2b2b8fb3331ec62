// What the tests of the operations share: seeded data, weights under any scheme, the rows
// of a table that this machine can run, outputs filled with NaN before each run.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/base/cpu.h"
#include "kernels/base/matrix_view.h"
#include "kernels/base/parallel.h"
#include "random_data.h"

namespace nibble {

inline constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

// A matrix whose rows lie further apart than they are long; what lies between is poison.
struct Spaced {
  int64_t rows, cols, stride;
  std::vector<float> data;
  Spaced(int64_t rows_, int64_t cols_, int64_t gap = 3)
      : rows(rows_),
        cols(cols_),
        stride(cols_ + gap),
        data(static_cast<size_t>(rows_ * stride), kPoison) {}
  Spaced(const std::vector<float>& values, int64_t rows_, int64_t cols_, int64_t gap = 3)
      : Spaced(rows_, cols_, gap) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c)
        view()(r, c) = values[static_cast<size_t>(r * cols + c)];
    }
  }
  MatrixView<float> view() { return {data.data(), rows, cols, stride}; }
  MatrixView<const float> view() const { return {data.data(), rows, cols, stride}; }
  // Whether everything between the rows is still poison.
  bool gaps_untouched() const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = cols; c < stride; ++c) {
        if (!std::isnan(data[static_cast<size_t>(r * stride + c)])) return false;
      }
    }
    return true;
  }
};

// The instruction set whose row a forced level gives: rows of bf16, of tile and of
// AVX-VNNI products exist where something multiplies so.
inline std::string isa_under(const std::string& level, bool has_avxvnni = false) {
  if (level == "avx512bf16" || level == "amx") return "avx512vnni";
  return level == "avxvnni" && !has_avxvnni ? "avx2" : level;
}

inline bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline LinearWeight random_weight(const std::string& scheme, int64_t rows, int64_t cols,
                                  uint64_t seed) {
  Result<LinearWeight> weight = make_random_weight(scheme, rows, cols, seed);
  EXPECT_TRUE(weight.ok()) << weight.status().message();
  return weight.ok() ? *weight : LinearWeight{};
}

inline bool this_cpu_has(uint32_t flags) { return (flags & ~cpu_info().flags) == 0; }

// Test names may hold letters, digits and _ only.
inline std::string test_name(std::string name) {
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}

// One thread unless a test asks for more, so that thousands of tiny runs do not wait for each
// other on a busy machine. Restores the thread count and the CPU level.
class OpTest : public ::testing::Test {
 protected:
  OpTest() { set_thread_count(1); }
  ~OpTest() override {
    set_thread_count(threads_);
    static_cast<void>(force_cpu("").ok());
  }
  const int threads_ = thread_count();
};

}  // namespace nibble
