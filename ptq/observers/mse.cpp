// The range is cut where that lowers the squared error over everything that was seen.
#include <algorithm>
#include <cmath>

#include "ptq/observers/observer.h"

namespace nibble {
namespace {

constexpr int kSteps = 100;  // shrink factors tried: 1, 0.99 ... 0.01

double squared_error(const ValueStatistics& statistics, double scale, int lowest,
                     int highest) {
  double error = 0;
  for (int i = 0; i < ValueStatistics::kBins; ++i) {
    const int64_t up = statistics.positive()[i], down = statistics.negative()[i];
    if (up == 0 && down == 0) continue;
    const double x = (i + 0.5) * statistics.bin_width();  // a bin's numbers at its centre
    const double code = std::nearbyint(x / scale);
    const double above = x - scale * std::min(code, static_cast<double>(highest));
    const double below = x - scale * std::min(code, static_cast<double>(-lowest));
    error += static_cast<double>(up) * above * above +
             static_cast<double>(down) * below * below;
  }
  return error;
}

}  // namespace

float scale_mse(const ValueStatistics& statistics, const QuantScheme& scheme) {
  const float whole = scale_minmax(statistics, scheme);
  if (statistics.largest() == 0 && statistics.smallest() == 0) return whole;
  const int lowest = code_lowest(scheme), highest = code_highest(scheme);
  float best = whole;
  double least = squared_error(statistics, whole, lowest, highest);
  for (int step = 1; step < kSteps; ++step) {
    const float scale = whole * (1.0f - static_cast<float>(step) / kSteps);
    const double error = squared_error(statistics, scale, lowest, highest);
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

}  // namespace nibble
