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
#include "kernels/base/float_types.h"
#include "kernels/base/matrix_view.h"
#include "kernels/base/parallel.h"
#include "kernels/base/splitmix64.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

inline constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

// The sum of 12 uniform numbers less 6: nearly normal.
inline std::vector<float> random_floats(int64_t n, uint64_t seed) {
  SplitMix64 random(seed);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += random.uniform();
    v = static_cast<float>(sum);
  }
  return x;
}

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

// The instruction set whose row a forced level gives: rows of bf16 and of AVX-VNNI
// products exist where something multiplies so.
inline std::string isa_under(const std::string& level, bool has_avxvnni = false) {
  if (level == "avx512bf16") return "avx512vnni";
  return level == "avxvnni" && !has_avxvnni ? "avx2" : level;
}

inline bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A random weight as an artifact would hold it.
inline LinearWeight random_weight(const std::string& scheme_text, int64_t rows,
                                  int64_t cols, uint64_t seed) {
  std::vector<float> values = random_floats(rows * cols, seed);
  for (float& v : values) v = 0.3f * v + 0.1f;  // so that zero points and minima matter
  const Result<QuantScheme> scheme = parse_scheme(scheme_text);
  EXPECT_TRUE(scheme.ok()) << scheme.status().message();
  if (!scheme.ok()) return {};
  Result<LinearWeight> weight = Status(StatusCode::internal, "not made");
  if (scheme->is_float()) {
    Tensor tensor = make_tensor({rows, cols}, values);
    if (scheme->code != Element::f32) {
      const bool bf16 = scheme->code == Element::bf16;
      std::vector<uint16_t> bits;
      for (float v : values)
        bits.push_back(bf16 ? bf16_from_float(v) : f16_from_float(v));
      tensor.dtype = bf16 ? DType::bf16 : DType::f16;
      tensor.bytes = Bytes::copy_of(bits.data(), bits.size() * 2);
    }
    weight = linear_weight(tensor);
  } else {
    const MatrixView<const float> x(values.data(), rows, cols);
    Result<CodedMatrix> q = choose_scales(x, *scheme, ScaleRule{});
    EXPECT_TRUE(q.ok()) << q.status().message();
    if (!q.ok()) return {};
    const Status status = quantize(x, *q);
    EXPECT_TRUE(status.ok()) << status.message();
    const Result<PackedTensor> packed = pack(*q, {rows, cols});
    EXPECT_TRUE(packed.ok()) << packed.status().message();
    if (!packed.ok()) return {};
    weight = linear_weight(*packed);
  }
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
