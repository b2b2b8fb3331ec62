// An observer turns what was seen of a value during calibration into its static scale.
// The rows are in observers.inc; they all read one statistic, ValueStatistics.
//
//   minmax  s = max(largest / highest code, smallest / lowest code)
//   mse     the shrink of minmax's s with the least squared error of
//           x -> s * clamp(round(x / s), lowest, highest) over the histogram
//   percentile  all but one in 10,000 of the magnitudes
//   kl      the cut that loses least information (KL divergence of histograms)
//
// A value that was zero everywhere gets scale 1.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/scheme/quant_scheme.h"

namespace nibble {

// Smallest, largest and a histogram of magnitudes, one for each sign, whose range is a
// power of two: it doubles, merging bins in pairs, when a larger number comes. Counts are
// integers, so the order in which data arrives changes nothing.
class ValueStatistics {
 public:
  static constexpr int kBins = 4096;

  void add(std::span<const float> values);
  // What others saw: the same as seeing it here.
  void add(const ValueStatistics& other);
  // For other processes, and back.
  std::string bytes() const;
  static ValueStatistics from(const std::string& bytes);

  int64_t count() const { return count_; }
  bool finite() const { return finite_; }       // false once a NaN or infinity was seen
  float smallest() const { return smallest_; }  // never above 0
  float largest() const { return largest_; }    // never below 0
  // Bin i holds magnitudes [i, i + 1) * bin_width().
  double bin_width() const { return range_ / kBins; }
  const std::vector<int64_t>& positive() const { return positive_; }
  const std::vector<int64_t>& negative() const { return negative_; }

 private:
  void grow(double magnitude);

  int64_t count_ = 0;
  bool finite_ = true;
  float smallest_ = 0, largest_ = 0;
  double range_ = 0;
  std::vector<int64_t> positive_, negative_;
};

struct Observer {
  const char* name;
  float (*scale)(const ValueStatistics& statistics, const QuantScheme& scheme);
};
const std::vector<Observer>& all_observers();
const Observer* find_observer(const std::string& name);

#define NIBBLE_OBSERVER(name) \
  float scale_##name(const ValueStatistics& statistics, const QuantScheme& scheme);
#include "ptq/observers/observers.inc"
#undef NIBBLE_OBSERVER

}  // namespace nibble
