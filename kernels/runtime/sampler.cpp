#include "kernels/runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace nibble {

Sampler::Sampler(uint64_t seed, float temperature, float top_p)
    : random_(seed), temperature_(temperature), top_p_(top_p) {}

int32_t Sampler::next(std::span<const float> logits) {
  if (logits.empty()) return 0;
  const auto best = std::max_element(logits.begin(), logits.end());  // the first of equals
  if (!(temperature_ > 0)) return static_cast<int32_t>(best - logits.begin());

  // One draw a token, whatever the logits: the sequence of draws depends on the seed alone.
  const double draw = random_.uniform();

  std::vector<double> weights(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    weights[i] = std::exp((static_cast<double>(logits[i]) - *best) / temperature_);
  }
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  size_t kept = order.size();
  double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  if (top_p_ < 1) {
    // The smallest set of the likeliest tokens that holds top_p of the probability.
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return weights[static_cast<size_t>(a)] > weights[static_cast<size_t>(b)];
    });
    const double enough = static_cast<double>(top_p_) * total;
    double sum = 0;
    kept = 0;
    while (kept < order.size() && (kept == 0 || sum < enough)) {
      sum += weights[static_cast<size_t>(order[kept++])];
    }
    total = sum;
  }
  double left = draw * total;
  for (size_t i = 0; i + 1 < kept; ++i) {
    left -= weights[static_cast<size_t>(order[i])];
    if (left < 0) return order[i];
  }
  return order[kept - 1];
}

}  // namespace nibble
