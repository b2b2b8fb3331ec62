// The Walsh-Hadamard transform and the orthogonal matrices made of it.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "kernels/base/splitmix64.h"
#include "kernels/ops/hadamard/hadamard.h"
#include "kernels/program/edits/orthogonal.h"

namespace nibble {
namespace {

// Sylvester's H[i][j] = (-1)^(number of common bits of i and j).
double sylvester(int64_t i, int64_t j) {
  return std::popcount(static_cast<uint64_t>(i & j)) % 2 == 0 ? 1.0 : -1.0;
}

TEST(Hadamard, IsSylvestersMatrixInEachBlock) {
  SplitMix64 random(3);
  for (const int64_t block : {1, 2, 8, 64, 1024}) {
    const int64_t n = 3 * block;
    std::vector<float> x(static_cast<size_t>(n)), y(x.size(), 7.0f);
    for (float& v : x) v = static_cast<float>(4 * random.uniform() - 2);
    hadamard(x.data(), n, block, y.data());
    for (int64_t at = 0; at < n; at += block) {
      for (int64_t j = 0; j < block; ++j) {
        double exact = 0, magnitude = 0;
        for (int64_t i = 0; i < block; ++i) {
          const double v = x[static_cast<size_t>(at + i)];
          exact += v * sylvester(i, j);
          magnitude += std::fabs(v);
        }
        const double root = std::sqrt(static_cast<double>(block));
        const double bound = (std::log2(static_cast<double>(block)) + 1) * 0x1p-24 * magnitude;
        EXPECT_NEAR(y[static_cast<size_t>(at + j)], exact / root, bound / root)
            << block << " " << j;
      }
    }
    // In place, and back.
    hadamard(y.data(), n, block, y.data());
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], x[i], 1e-5) << block;
  }
}

class OrthogonalSizes : public ::testing::TestWithParam<int64_t> {};

TEST_P(OrthogonalSizes, RowsAreOrthonormal) {
  const int64_t n = GetParam();
  const Orthogonal q(n, 1, 5);
  ASSERT_EQ(q.channels(), n);
  std::vector<std::vector<double>> rows;
  std::vector<double> scratch(512);
  for (int64_t i = 0; i < n; ++i) {
    std::vector<double> row(static_cast<size_t>(n), 0.0);
    row[static_cast<size_t>(i)] = 1;
    q.apply(row.data(), scratch.data());
    rows.push_back(std::move(row));
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double dot = 0;
      for (size_t c = 0; c < rows[0].size(); ++c)
        dot += rows[static_cast<size_t>(i)][c] * rows[static_cast<size_t>(j)][c];
      ASSERT_NEAR(dot, i == j ? 1 : 0, 1e-12) << n << ": " << i << ", " << j;
    }
  }
  // Every channel goes to all it meets in equal parts.
  const double each = 1 / std::sqrt(static_cast<double>(q.mixed()));
  for (const double value : rows[0])
    EXPECT_TRUE(value == 0 || std::fabs(std::fabs(value) - each) < 1e-12);
}

// 12 = 11 + 1, 20 and 44 of the first kind; 28 and 36 of the second; 40, 384 with powers of
// two; 172 = 4 * 43 has none.
INSTANTIATE_TEST_SUITE_P(Sizes, OrthogonalSizes,
                         ::testing::Values(1, 2, 12, 16, 20, 28, 36, 40, 44, 64, 172, 384));

TEST(Orthogonal, MixesAllChannelsWhereAMatrixIsKnown) {
  for (const int64_t n : {384, 896, 1536, 2048, 3584, 4096, 4864, 5120, 14336, 18944})
    EXPECT_EQ(Orthogonal(n).mixed(), n) << n;
  EXPECT_EQ(Orthogonal(11008).mixed(), 256);
  EXPECT_EQ(Orthogonal(7).mixed(), 1);
}

TEST(Orthogonal, RepeatsAMatrixForEachHead) {
  const Orthogonal one(8), three(8, 3);
  std::vector<double> scratch(512), row(24), part(8);
  for (size_t i = 0; i < row.size(); ++i) row[i] = std::sin(static_cast<double>(i));
  std::copy_n(row.begin() + 8, 8, part.begin());
  three.apply(row.data(), scratch.data());
  one.apply(part.data(), scratch.data());
  for (size_t i = 0; i < part.size(); ++i) EXPECT_EQ(row[8 + i], part[i]);
}

}  // namespace
}  // namespace nibble
