// What an instruction set with tile products (AMX) gives the linear rows: many tokens at
// once, 16 of them against 16 outputs and 64 bytes of columns by one instruction.
//
//   x      [rows / 16][columns / step][16][step]: a tile of activations is one piece of
//          memory. s8: codes; bf16: pairs (linear_bf16.h), step and columns in dwords
//   u      a pair of panels' bytes (linear_isa.h) or dwords of bf16 pairs: 16 rows of 128
//          bytes hold what a tile of each panel takes
//   sums   [groups, mr], of the activations over each group
//
// A step is what one instruction sums: up to 64 bytes, and a divisor of every group, so
// that no tile holds another group's columns. 0: groups too short, or too odd, to pay.
//
// Plain data and function pointers. Nothing here allocates; safe from any thread.
#pragma once

#include <cstdint>

#include "kernels/ops/linear/linear_isa.h"

namespace nibble {

struct LinearTileIsa {
  int tile, small_tile;  // rows: two tiles of activations, one

  // Makes the calling thread's registers ready for products of `step`, and gives them
  // back: a thread that goes on to other work with tiles in use has them saved and
  // restored at every switch. Products between the two.
  void (*begin)(int64_t step);
  void (*end)();

  // The s8 definition but for the activation's scale and the bias, as LinearIsa's
  // tile_s8.
  //   acc  [mr, 2 lanes]
  void (*product_s8)(const PanelCodes& w, int64_t p, int mr, int64_t step,
                     const int8_t* x, const int32_t* sums, const uint8_t* u, int bias,
                     float* acc);
  // Padded columns [first, end) of the sum of linear_bf16.h (first = 0: set, else added
  // to); x begins at the first of all columns, u at `first`.
  void (*product_bf16)(const PanelCodes& w, int64_t p, int mr, int64_t step,
                       int64_t first, int64_t end, const uint32_t* x, const float* sums,
                       const uint32_t* u, float* acc);
};

// Bytes of a step: columns of s8, pairs of bf16 as dwords.
inline constexpr int64_t kLeastTileStep = 32, kMostTileStep = 64;
// The step of groups of `group` columns in rows of `cols`, both padded, `bytes` a column.
inline int64_t tile_step(int64_t group, int64_t cols, int64_t bytes) {
  int64_t step = kMostTileStep;
  const int64_t last = cols % group;
  while (group * bytes % step != 0 || last * bytes % step != 0) step /= 2;
  return step >= kLeastTileStep ? step : 0;
}

namespace amx {
extern const LinearTileIsa linear_tile_isa;
}

}  // namespace nibble
