// The panel product: a tile of rows times a panel of outputs, the inner loop that linear,
// convolution and attention share. One PanelIsa an instruction set.
//
//   f32   acc[m, j] (+)= sum_k x[k, m] * w[k, j]              k ascending, one FMA each
//   s32   acc[m, j] = start[m] + sum_k x[k, m] * u[k, j]      exact
//
//   x      [k, mr] packed: mr values of one k lie together. s32: [steps, mr, dwords]
//   int32,
//          a step being 4 k; dwords as pack_codes fills them
//   w, u   two panels side by side, w0 and w1, each [k, lanes] f32, or [steps, lanes, 4]
//   u8
//          with `stride` elements from one k to the next (f32), or step i `at[i]` bytes
//          behind w0 and w1 (u8)
//   acc    [mr, 2 lanes], contiguous
//
// mr is `tile` or `small_tile`. j < lanes comes from w0, the rest from w1. s32 must stay
// inside int32: |start| + 4 * steps * 255 * 128 < 2^31. Plain data and function pointers,
// so that ISA files need nothing of std. Nothing here allocates; safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble {

// Codes of one panel of a tile: (float(acc[m, j]) * multiplier[m]) / scale, rounded as
// ops/requantize.h does, low and high being whole.
struct PanelRounding {
  int64_t rows, count;      // of the tile, of the panel's outputs: those that exist
  const float* multiplier;  // [rows]
  float scale, low, high;
  uint8_t* out;    // [rows, count]
  int64_t stride;  // bytes from one row to the next
};

struct PanelIsa {
  const char* name;  // "avx512vnni"
  uint32_t flags;
  int lanes;  // f32 values of a vector
  int tile;   // rows of the large and the small tile
  int small_tile;
  int dwords;  // int32 words that hold one step (4 codes) of x
  void (*tile_f32)(const float* x, const float* w0, const float* w1, int64_t stride,
                   int64_t k, bool accumulate, float* acc);
  void (*small_f32)(const float* x, const float* w0, const float* w1, int64_t stride,
                    int64_t k, bool accumulate, float* acc);
  void (*tile_s32)(const int32_t* x, const uint8_t* w0, const uint8_t* w1,
                   const int64_t* at, int64_t steps, const int32_t* start, int32_t* acc);
  void (*small_s32)(const int32_t* x, const uint8_t* w0, const uint8_t* w1,
                    const int64_t* at, int64_t steps, const int32_t* start, int32_t* acc);

  void (*requantize)(const int32_t* acc, const PanelRounding& codes);

  // out[j] = one dword of a, b, c and d at j < n, a in its lowest byte, all four by flip.
  void (*interleave)(const uint8_t* a, const uint8_t* b, const uint8_t* c,
                     const uint8_t* d, int64_t n, uint8_t flip, uint8_t* out);

  // Rows of the next tile when `left` rows are left: the large one while it is mostly
  // full.
  int next_tile(int64_t left) const {
    return left > tile - small_tile ? tile : small_tile;
  }
  // Rows that n rows take once every tile is full.
  int64_t padded_rows(int64_t n) const {
    int64_t rows = n / tile * tile;
    while (rows < n) rows += next_tile(n - rows);
    return rows;
  }
  void product_f32(int mr, const float* x, const float* w0, const float* w1,
                   int64_t stride, int64_t k, bool accumulate, float* acc) const {
    (mr == tile ? tile_f32 : small_f32)(x, w0, w1, stride, k, accumulate, acc);
  }
  void product_s32(int mr, const int32_t* x, const uint8_t* w0, const uint8_t* w1,
                   const int64_t* at, int64_t steps, const int32_t* start,
                   int32_t* acc) const {
    (mr == tile ? tile_s32 : small_s32)(x, w0, w1, at, steps, start, acc);
  }
};

namespace avx2 {
extern const PanelIsa panel_isa;
}
namespace avxvnni {
extern const PanelIsa panel_isa;
}
namespace avx512vnni {
extern const PanelIsa panel_isa;
}

// x rows [first, first + mr) of a [n, k] matrix into packed [k, mr]; rows >= n become 0.
void pack_rows(const float* x, int64_t stride, int64_t n, int64_t k, int mr,
               float* packed);
// The same for signed codes: row r is codes + r * stride, `steps` steps of 4 codes.
void pack_codes(const PanelIsa& isa, const int8_t* codes, int64_t stride, int64_t n,
                int64_t steps, int mr, int32_t* packed);

}  // namespace nibble
