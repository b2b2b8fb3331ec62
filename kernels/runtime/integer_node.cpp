#include "kernels/runtime/integer_node.h"

#include <limits>

namespace nibble {

int32_t integer_bias(float bias, float input_scale, float weight_scale) {
  const float multiplier = input_scale * weight_scale;
  const double code = std::nearbyint(static_cast<double>(bias) / multiplier);
  if (!(code > std::numeric_limits<int32_t>::min())) {
    return std::numeric_limits<int32_t>::min();
  }
  if (code > std::numeric_limits<int32_t>::max()) {
    return std::numeric_limits<int32_t>::max();
  }
  return static_cast<int32_t>(code);
}

}  // namespace nibble
