// SplitMix64 (Steele, Lea, Flood 2014): nibble's random numbers, the same on every
// machine.
//
// The standard's distributions differ between libraries, so what must repeat draws from
// here.
#pragma once

#include <cstdint>

namespace nibble {

// One bijective scramble of 64 bits: the generator's output function.
constexpr uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

class SplitMix64 {
 public:
  explicit constexpr SplitMix64(uint64_t seed) : state_(seed) {}
  constexpr uint64_t next() { return mix64(state_ += 0x9e3779b97f4a7c15ull); }
  // An integer in [0, bound): floor(x * bound / 2^64), biased by less than bound / 2^64.
  constexpr uint64_t below(uint64_t bound) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
  }
  // A double in [0, 1), 53 random bits.
  constexpr double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

 private:
  uint64_t state_;
};

}  // namespace nibble
