#include "kernels/base/rate.h"

#include <algorithm>

namespace nibble {

Rate rate_of(std::vector<double> samples) {
  Rate rate;
  if (samples.empty()) return rate;
  std::sort(samples.begin(), samples.end());
  const size_t n = samples.size();
  rate.repeats = static_cast<int64_t>(n);
  rate.median = n % 2 == 1 ? samples[n / 2] : (samples[n / 2 - 1] + samples[n / 2]) / 2;
  rate.low = samples[n / 4];
  rate.high = samples[n - 1 - n / 4];
  return rate;
}

}  // namespace nibble
