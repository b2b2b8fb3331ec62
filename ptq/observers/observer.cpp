#include "ptq/observers/observer.h"

#include <algorithm>
#include <cmath>

namespace nibble {

void ValueStatistics::grow(float magnitude) {
  if (range_ == 0) {
    positive_.assign(kBins, 0);
    negative_.assign(kBins, 0);
    range_ = std::exp2(std::floor(std::log2(magnitude)) + 1);
  }
  while (magnitude >= range_) {
    for (std::vector<int64_t>* bins : {&positive_, &negative_}) {
      for (int i = 0; i < kBins / 2; ++i)
        (*bins)[i] = (*bins)[2 * i] + (*bins)[2 * i + 1];
      std::fill(bins->begin() + kBins / 2, bins->end(), 0);
    }
    range_ *= 2;
  }
}

void ValueStatistics::add(std::span<const float> values) {
  for (const float x : values) {
    if (!std::isfinite(x)) {
      finite_ = false;
      continue;
    }
    smallest_ = std::min(smallest_, x);
    largest_ = std::max(largest_, x);
  }
  const float magnitude = std::max(largest_, -smallest_);
  count_ += static_cast<int64_t>(values.size());
  if (magnitude == 0) return;
  if (magnitude >= range_) grow(magnitude);
  const double bins_per_unit =
      kBins / range_;  // both powers of two: the products are exact
  for (const float x : values) {
    if (!std::isfinite(x) || x == 0) continue;
    (x > 0 ? positive_ : negative_)[static_cast<int>(std::fabs(x) * bins_per_unit)] += 1;
  }
}

const std::vector<Observer>& all_observers() {
  static const std::vector<Observer> observers = {
#define NIBBLE_OBSERVER(name) {#name, &scale_##name},
#include "ptq/observers/observers.inc"
#undef NIBBLE_OBSERVER
  };
  return observers;
}

const Observer* find_observer(const std::string& name) {
  for (const Observer& observer : all_observers()) {
    if (name == observer.name) return &observer;
  }
  return nullptr;
}

}  // namespace nibble
