#include "ptq/observers/observer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace nibble {

void ValueStatistics::grow(double magnitude) {
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

void ValueStatistics::add(const ValueStatistics& other) {
  count_ += other.count_;
  finite_ = finite_ && other.finite_;
  smallest_ = std::min(smallest_, other.smallest_);
  largest_ = std::max(largest_, other.largest_);
  if (other.range_ == 0) return;
  // A range is the first power of two above a magnitude: half of it gives the same one.
  ValueStatistics wide = other;
  if (range_ < other.range_) grow(other.range_ / 2);
  if (wide.range_ < range_) wide.grow(range_ / 2);
  for (size_t i = 0; i < kBins; ++i) {
    positive_[i] += wide.positive_[i];
    negative_[i] += wide.negative_[i];
  }
}

std::string ValueStatistics::bytes() const {
  std::string text;
  const auto put = [&text](const auto* data, size_t count) {
    text.append(reinterpret_cast<const char*>(data), count * sizeof(*data));
  };
  put(&count_, 1);
  put(&finite_, 1);
  put(&smallest_, 1);
  put(&largest_, 1);
  put(&range_, 1);
  put(positive_.data(), positive_.size());
  put(negative_.data(), negative_.size());
  return text;
}

ValueStatistics ValueStatistics::from(const std::string& bytes) {
  ValueStatistics seen;
  size_t at = 0;
  const auto take = [&](auto* data, size_t count) {
    std::memcpy(data, bytes.data() + at, count * sizeof(*data));
    at += count * sizeof(*data);
  };
  take(&seen.count_, 1);
  take(&seen.finite_, 1);
  take(&seen.smallest_, 1);
  take(&seen.largest_, 1);
  take(&seen.range_, 1);
  if (seen.range_ > 0) {
    for (std::vector<int64_t>* bins : {&seen.positive_, &seen.negative_}) {
      bins->resize(kBins);
      take(bins->data(), kBins);
    }
  }
  return seen;
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
