// The range holds all but one in ten thousand of the magnitudes that were seen
// (the 99.99th percentile, the usual choice: Wu et al., "Integer Quantization for Deep
// Learning Inference", arXiv 2004.09602, sec. 4.2).
#include <algorithm>

#include "ptq/observers/observer.h"

namespace nibble {
namespace {

constexpr double kOutside = 1e-4;

// The magnitude that at most `allowed` of the counts lie above.
double bound(const std::vector<int64_t>& bins, double width, double allowed) {
  double above = 0;
  for (int i = ValueStatistics::kBins - 1; i >= 0; --i) {
    above += static_cast<double>(bins[static_cast<size_t>(i)]);
    if (above > allowed) return (i + 1) * width;
  }
  return 0;
}

}  // namespace

float scale_percentile(const ValueStatistics& statistics, const QuantScheme& scheme) {
  const float whole = scale_minmax(statistics, scheme);
  if (statistics.largest() == 0 && statistics.smallest() == 0) return whole;
  const int lowest = code_lowest(scheme), highest = code_highest(scheme);
  const double allowed = kOutside * static_cast<double>(statistics.count());
  double scale = bound(statistics.positive(), statistics.bin_width(), allowed) / highest;
  if (lowest < 0) {
    scale = std::max(
        scale, bound(statistics.negative(), statistics.bin_width(), allowed) / -lowest);
  }
  // A bin ends above what it holds: never wider than what was seen.
  return scale > 0 ? std::min(static_cast<float>(scale), whole) : whole;
}

}  // namespace nibble
