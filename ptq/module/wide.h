// Sixteen floats at a time, compiled once for each width of register that an x86 may
// have.
//
// Wide and WideBits are GCC's vector types: + - * / < == and ?: act on each lane by the
// same IEEE operations at any width, so the bits are the same too. A function that is
// NIBBLE_EVERY_WIDTH is chosen when the program starts; what it calls is compiled for the
// narrowest alone, lambdas too, so its loops stand in it whole.
#pragma once

#include <cstdint>

namespace nibble {

constexpr int64_t kWide = 16;
using Wide = float __attribute__((vector_size(64)));
using WideBits = int32_t __attribute__((vector_size(64)));

#if defined(__x86_64__) && defined(__gnu_linux__)
#define NIBBLE_EVERY_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define NIBBLE_EVERY_WIDTH
#endif

// Sixteen lanes in one fixed order.
inline float sum_of_lanes(const float* lanes) {
  float eight[8];
  for (int i = 0; i < 8; ++i) eight[i] = lanes[i] + lanes[i + 8];
  return ((eight[0] + eight[4]) + (eight[2] + eight[6])) +
         ((eight[1] + eight[5]) + (eight[3] + eight[7]));
}

}  // namespace nibble
