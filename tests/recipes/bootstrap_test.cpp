// Intervals by resampling sequences: their width, their seed, percentiles by nearest
// rank.
#include "recipes/eval/bootstrap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/base/parallel.h"
#include "kernels/base/splitmix64.h"

namespace nibble {
namespace {

TEST(Percentiles, AreByNearestRank) {
  // 1 .. 10 over three sequences: the 90th percentile is the 9th value, the 99th the
  // 10th.
  const std::vector<std::vector<float>> values = {{7, 1, 4}, {10, 2}, {3, 9, 8, 5, 6}};
  const std::vector<Percentile> p = percentiles(values, {0.1, 0.5, 0.9, 0.91, 0.99});
  EXPECT_EQ(p[0].value, 1);
  EXPECT_EQ(p[1].value, 5);
  EXPECT_EQ(p[2].value, 9);
  EXPECT_EQ(p[3].value, 10);
  EXPECT_EQ(p[4].value, 10);
  for (const Percentile& each : p) {
    EXPECT_LE(each.ci95.low, each.value);
    EXPECT_GE(each.ci95.high, each.value);
  }
  EXPECT_EQ(percentiles({}, {0.9})[0].value, 0);
  const Percentile one = percentiles({{1, 2, 3}}, {0.5})[0];
  EXPECT_EQ(one.value, 2);
  EXPECT_EQ(one.ci95.low, 2);  // one sequence: every resample is that sequence
  EXPECT_EQ(one.ci95.high, 2);
}

// Against the plain way: draw the same sequences, pool, sort, take the rank.
TEST(Percentiles, ResampleAsTheDefinitionDoes) {
  SplitMix64 random(3);
  std::vector<std::vector<float>> values;
  for (int s = 0; s < 13; ++s) {
    values.emplace_back();
    for (uint64_t i = 0; i < 3 + random.below(40); ++i)
      values.back().push_back(static_cast<float>(random.uniform() * (s + 1)));
  }
  values.emplace_back();  // a sequence without a prediction
  SplitMix64 draws(kBootstrapSeed);
  std::vector<double> tails;
  for (int b = 0; b < kResamples; ++b) {
    std::vector<float> pooled;
    for (size_t i = 0; i < values.size(); ++i) {
      const std::vector<float>& drawn = values[draws.below(values.size())];
      pooled.insert(pooled.end(), drawn.begin(), drawn.end());
    }
    std::sort(pooled.begin(), pooled.end());
    const double rank = std::ceil(0.9 * static_cast<double>(pooled.size()));
    tails.push_back(static_cast<double>(pooled[static_cast<size_t>(rank) - 1]));
  }
  std::sort(tails.begin(), tails.end());
  const Percentile p = percentiles(values, {0.9})[0];
  EXPECT_EQ(p.ci95.low, tails[50]);
  EXPECT_EQ(p.ci95.high, tails[1949]);
}

TEST(Percentiles, DoNotDependOnTheThreads) {
  const int before = thread_count();
  std::vector<std::vector<float>> values;
  SplitMix64 random(5);
  for (int s = 0; s < 50; ++s) {
    values.emplace_back();
    for (int i = 0; i < 20; ++i)
      values.back().push_back(static_cast<float>(random.uniform()));
  }
  set_thread_count(1);
  const Percentile one = percentiles(values, {0.99})[0];
  set_thread_count(3);
  const Percentile three = percentiles(values, {0.99})[0];
  set_thread_count(before);
  EXPECT_EQ(one.ci95.low, three.ci95.low);
  EXPECT_EQ(one.ci95.high, three.ci95.high);
  EXPECT_LT(one.ci95.low, one.ci95.high);
}

// The interval of a mean of n independent values is about 1.96 deviations / sqrt(n) wide
// on either side; too narrow is as wrong as too wide.
TEST(Bootstrap, IntervalHasTheRightWidth) {
  std::vector<double> values, weights;
  for (int i = 0; i < 1000; ++i) values.push_back(i % 2), weights.push_back(1);
  const Interval interval = bootstrap_ci95(values, weights);
  const double half = 1.96 * 0.5 / std::sqrt(1000.0);
  EXPECT_NEAR(interval.low, 0.5 - half, half / 8);
  EXPECT_NEAR(interval.high, 0.5 + half, half / 8);
  const Interval again = bootstrap_ci95(values, weights);
  EXPECT_EQ(again.low, interval.low);
  // A weight of zero takes a value out.
  const Interval weighted = bootstrap_ci95({1, 100, 1}, {5, 0, 5});
  EXPECT_EQ(weighted.low, 1);
  EXPECT_EQ(weighted.high, 1);
  EXPECT_EQ(bootstrap_ci95({3}, {7}).low, 3);
}

// 95 of 100 intervals hold the true mean: of 400 made from sequences of correlated
// values, 380 +- 13 (three deviations) should.
TEST(Bootstrap, CoversTheTruthAsOftenAsItSays) {
  SplitMix64 random(11);
  int covered = 0;
  for (int trial = 0; trial < 400; ++trial) {
    std::vector<double> means, weights;
    for (int s = 0; s < 60; ++s) {
      // Predictions of a sequence share its difficulty; its mean is what is resampled.
      means.push_back(random.uniform() + 0.1 * random.uniform());
      weights.push_back(1 + static_cast<double>(random.below(3)));
    }
    const Interval interval = bootstrap_ci95(means, weights);
    covered += interval.low <= 0.55 && interval.high >= 0.55;
  }
  EXPECT_GE(covered, 362);
  EXPECT_LE(covered, 393);
}

}  // namespace
}  // namespace nibble
