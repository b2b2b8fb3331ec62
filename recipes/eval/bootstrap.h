// 95 % intervals by resampling whole sequences (or images), which are independent of each
// other where the predictions inside one are not.
//
//   resample b = 1 .. 2,000 draws n of the n sequences with replacement, by SplitMix64
//   seeded with 20; the statistic of each resample is taken; [low, high] are those at 2.5
//   % and 97.5 %. Every function draws the same resamples, so that intervals of one run
//   fit each other. The same input gives the same interval, at any thread count.
//
// One sequence alone gives [x, x]: no interval at all, and callers say so.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

inline constexpr int kResamples = 2000;
inline constexpr uint64_t kBootstrapSeed = 20;

struct Interval {
  double low = 0, high = 0;
};

// sum v w / sum w. Values of weight 0 count for nothing.
double weighted_mean(const std::vector<double>& values,
                     const std::vector<double>& weights);

// Of the weighted mean. Values of weight 0 are left out before anything is drawn.
Interval bootstrap_ci95(const std::vector<double>& values,
                        const std::vector<double>& weights);

// The p-th part of all values pooled, by nearest rank: the smallest x with at least
// p * count values <= x. 0 < p < 1.
struct Percentile {
  double value = 0;
  Interval ci95;
};
// One for each p. sequences: the values of each sequence, at least one in all.
std::vector<Percentile> percentiles(const std::vector<std::vector<float>>& sequences,
                                    const std::vector<double>& p);

}  // namespace nibble
