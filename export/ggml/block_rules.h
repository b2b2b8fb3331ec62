// One block from floats: the rules behind quantize_ggml, one a type. Private to
// export/ggml.
#pragma once

#include <cstdint>

namespace nibble {

struct BlockFloats {
  const float* x;       // [block]
  const float* weight;  // [block], the importance of the columns, or null
  float row_square;     // mean of x^2 over the row
};

// Where the codes and levels go; what a type does not have is null.
struct BlockCodes {
  uint8_t* codes;
  float* inner;          // the innermost scales
  float* minima;         // the innermost minima
  float* outer;          // of two levels
  float* outer_minimum;  // negative: what ggml subtracts
};

using BlockRule = void (*)(const BlockFloats& in, const BlockCodes& out);
BlockRule k_block_rule(const char* type);  // Q2_K .. Q6_K; null for others
BlockRule simple_block_rule(const char* type);

}  // namespace nibble
