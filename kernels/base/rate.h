// A figure a second and how far its repeats spread.
//
//   median        of the samples
//   low, high     the quartiles
//   repeats       how many samples; 0: the figure does not apply
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

struct Rate {
  double median = 0, low = 0, high = 0;
  int64_t repeats = 0;
};
// Of samples a second; none: repeats 0.
Rate rate_of(std::vector<double> samples);

}  // namespace nibble
