// The range is cut where the distribution of magnitudes loses least information: Migacz,
// "8-bit Inference with TensorRT" (GTC 2017).
//
//   P  the histogram below the cut, what lies above added to its last bin
//   Q  the histogram below the cut merged into `highest` levels, each level's count
//   spread
//      over its bins that hold something
//   cut* = argmin KL(P || Q)
#include <algorithm>
#include <cmath>

#include "ptq/observers/observer.h"

namespace nibble {
namespace {

constexpr int kCuts = 128;  // tried, at even steps of the histogram

double divergence(const std::vector<double>& histogram, int cut, int levels) {
  std::vector<double> p(histogram.begin(), histogram.begin() + cut);
  for (size_t i = static_cast<size_t>(cut); i < histogram.size(); ++i)
    p.back() += histogram[i];
  double p_sum = 0, q_sum = 0;
  std::vector<double> q(p.size(), 0);
  for (int level = 0; level < levels; ++level) {
    const int begin = static_cast<int>(static_cast<int64_t>(level) * cut / levels);
    const int end = static_cast<int>(static_cast<int64_t>(level + 1) * cut / levels);
    double sum = 0;
    int held = 0;
    for (int i = begin; i < end; ++i) {
      sum += histogram[static_cast<size_t>(i)];
      held += histogram[static_cast<size_t>(i)] > 0;
    }
    for (int i = begin; i < end; ++i) {
      if (histogram[static_cast<size_t>(i)] > 0) q[static_cast<size_t>(i)] = sum / held;
    }
  }
  for (size_t i = 0; i < p.size(); ++i) p_sum += p[i], q_sum += q[i];
  if (!(p_sum > 0) || !(q_sum > 0)) return INFINITY;
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] <= 0) continue;
    if (q[i] <= 0) return INFINITY;
    kl += p[i] / p_sum * std::log(p[i] / p_sum / (q[i] / q_sum));
  }
  return kl;
}

}  // namespace

float scale_kl(const ValueStatistics& statistics, const QuantScheme& scheme) {
  const float whole = scale_minmax(statistics, scheme);
  if (statistics.largest() == 0 && statistics.smallest() == 0) return whole;
  const int highest = code_highest(scheme);
  const bool is_signed = code_lowest(scheme) < 0;
  std::vector<double> histogram(ValueStatistics::kBins, 0);
  for (int i = 0; i < ValueStatistics::kBins; ++i) {
    const auto at = static_cast<size_t>(i);
    histogram[at] = static_cast<double>(statistics.positive()[at]) +
                    (is_signed ? static_cast<double>(statistics.negative()[at]) : 0.0);
  }
  float best = whole;
  double least = divergence(histogram, ValueStatistics::kBins, highest);
  for (int i = 1; i < kCuts; ++i) {
    const int cut = ValueStatistics::kBins * i / kCuts;
    if (cut < highest) continue;  // fewer bins than levels say nothing
    const double kl = divergence(histogram, cut, highest);
    const auto scale = static_cast<float>(cut * statistics.bin_width() / highest);
    if (kl < least && scale < whole) {
      least = kl;
      best = scale;
    }
  }
  return best;
}

}  // namespace nibble
