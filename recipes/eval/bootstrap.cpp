#include "recipes/eval/bootstrap.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/parallel.h"
#include "kernels/base/splitmix64.h"

namespace nibble {
namespace {

constexpr int kTogether = 100;  // resamples whose draws are held at a time

Interval middle_95(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  constexpr size_t kTail = kResamples / 40;  // 2.5 % on either side
  return {values[kTail], values[kResamples - 1 - kTail]};
}

struct Pooled {
  float value;
  uint32_t sequence;
};

// Nearest rank from above: values after the wanted one are those that may be left over.
double ranked(const std::vector<Pooled>& falling, const uint32_t* times, int64_t total,
              double p) {
  const int64_t rank = static_cast<int64_t>(std::ceil(p * static_cast<double>(total)));
  int64_t above = total - std::clamp<int64_t>(rank, 1, total);
  for (const Pooled& entry : falling) {
    above -= times == nullptr ? 1 : times[entry.sequence];
    if (above < 0) return static_cast<double>(entry.value);
  }
  return static_cast<double>(falling.back().value);
}

}  // namespace

double weighted_mean(const std::vector<double>& values,
                     const std::vector<double>& weights) {
  double sum = 0, total = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (weights[i] == 0) continue;
    sum += values[i] * weights[i];
    total += weights[i];
  }
  return sum / total;
}

Interval bootstrap_ci95(const std::vector<double>& all_values,
                        const std::vector<double>& all_weights) {
  std::vector<double> values, weights;
  for (size_t i = 0; i < all_values.size(); ++i) {
    if (all_weights[i] == 0) continue;
    values.push_back(all_values[i]);
    weights.push_back(all_weights[i]);
  }
  if (values.empty()) return {};
  SplitMix64 random(kBootstrapSeed);
  std::vector<double> means(kResamples);
  for (double& mean : means) {
    double sum = 0, total = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t drawn = static_cast<size_t>(random.below(values.size()));
      sum += values[drawn] * weights[drawn];
      total += weights[drawn];
    }
    mean = sum / total;
  }
  return middle_95(std::move(means));
}

std::vector<Percentile> percentiles(const std::vector<std::vector<float>>& sequences,
                                    const std::vector<double>& p) {
  std::vector<Pooled> falling;
  for (size_t s = 0; s < sequences.size(); ++s) {
    for (const float value : sequences[s])
      falling.push_back({value, static_cast<uint32_t>(s)});
  }
  std::vector<Percentile> out(p.size());
  if (falling.empty()) return out;
  std::stable_sort(falling.begin(), falling.end(),
                   [](const Pooled& a, const Pooled& b) { return a.value > b.value; });
  for (size_t i = 0; i < p.size(); ++i)
    out[i].value = ranked(falling, nullptr, static_cast<int64_t>(falling.size()), p[i]);

  const size_t n = sequences.size();
  SplitMix64 random(kBootstrapSeed);
  std::vector<std::vector<double>> drawn(p.size(), std::vector<double>(kResamples));
  std::vector<uint32_t> times(kTogether * n);
  for (int first = 0; first < kResamples; first += kTogether) {
    std::fill(times.begin(), times.end(), 0u);
    for (size_t b = 0; b < kTogether; ++b) {
      for (size_t i = 0; i < n; ++i) ++times[b * n + random.below(n)];
    }
    parallel_for(kTogether, [&](int64_t b) {
      const uint32_t* mine = times.data() + static_cast<size_t>(b) * n;
      int64_t total = 0;
      for (size_t s = 0; s < n; ++s)
        total += mine[s] * static_cast<int64_t>(sequences[s].size());
      for (size_t i = 0; i < p.size(); ++i) {
        // Only empty sequences drawn: the pooled value stands in for nothing at all.
        drawn[i][static_cast<size_t>(first + b)] =
            total == 0 ? out[i].value : ranked(falling, mine, total, p[i]);
      }
    });
  }
  for (size_t i = 0; i < p.size(); ++i) out[i].ci95 = middle_95(std::move(drawn[i]));
  return out;
}

}  // namespace nibble
