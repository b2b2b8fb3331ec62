// A real number to the code of a value with a static scale, in f32.
//
//   q = clamp(rint(x / scale))      round half to even
//
// Allocates nothing; safe from any thread.
#pragma once

#include <cstdint>

namespace nibble {

// q_y for an already scaled real number x. Clamping first changes nothing, the limits
// being whole numbers, and then adding and taking away 1.5 * 2^23 rounds half to even
// (the sum's last place is 1) without a call; NaN becomes the lowest code.
inline int32_t quantize_real(float x, float scale, int lowest, int highest) {
  constexpr float kRound = 12582912.0f;
  const float low = static_cast<float>(lowest), high = static_cast<float>(highest);
  float v = x / scale;
  v = v > low ? v : low;
  v = v < high ? v : high;
  return static_cast<int32_t>((v + kRound) - kRound);
}

}  // namespace nibble
