// Chooses the next token from logits: greedy, or seeded temperature / top-p sampling.
//
// Deterministic: the same seed and logits give the same token on every machine make that gives
// the same logits. The generator is SplitMix64, one draw a token.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/base/splitmix64.h"

namespace nibble {

class Sampler {
 public:
  Sampler(uint64_t seed, float temperature, float top_p);  // temperature 0: greedy
  int32_t next(std::span<const float> logits);

 private:
  SplitMix64 random_;
  float temperature_, top_p_;
};

}  // namespace nibble
