// Rows of b-bit codes as packed_tensor.h stores them: a little-endian bit string,
// code i at bits i b .. i b + b - 1, zeros up to a whole byte.
//
// Allocates nothing. Safe to call from any thread.
#pragma once

#include <cstdint>
#include <cstring>

namespace nibble {

// Code `index`, of at most 32 bits.
inline uint32_t bits_at(const uint8_t* row, int bits, int64_t index) {
  const int64_t first = index * bits;
  uint64_t window = 0;
  std::memcpy(&window, row + first / 8, static_cast<size_t>((first % 8 + bits + 7) / 8));
  return static_cast<uint32_t>((window >> (first % 8)) & ((uint64_t{1} << bits) - 1));
}

// get(i), in its lowest `bits` bits, of each of n codes.
template <class Get>
void put_bits(int bits, int64_t n, const Get& get, uint8_t* row) {
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  uint64_t window = 0;
  int filled = 0;
  for (int64_t i = 0; i < n; ++i) {
    window |= (uint64_t{get(i)} & mask) << filled;
    for (filled += bits; filled >= 8; filled -= 8) {
      *row++ = static_cast<uint8_t>(window & 0xff);
      window >>= 8;
    }
  }
  if (filled > 0) *row = static_cast<uint8_t>(window & 0xff);
}

}  // namespace nibble
