// The range that was seen is just representable.
#include <algorithm>

#include "ptq/observers/observer.h"

namespace nibble {

float scale_minmax(const ValueStatistics& statistics, const QuantScheme& scheme) {
  const int lowest = code_lowest(scheme), highest = code_highest(scheme);
  float scale = statistics.largest() / static_cast<float>(highest);
  // Unsigned codes hold nothing below zero: what is there is clamped, as after a ReLU.
  if (lowest < 0)
    scale = std::max(scale, statistics.smallest() / static_cast<float>(lowest));
  return scale > 0 ? scale : 1.0f;
}

}  // namespace nibble
