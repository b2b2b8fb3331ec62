// What an instruction set with bf16 products gives the linear rows of bf16 activations.
//
// acc[m, j] = sum_g s[g, j] (sum over the pairs of g of x' w') + m[g, j] S[m, g]
//
// A pair of columns is the dword that one product takes. Of each 8 columns (groups are
// padded to that) the pairs are 0 2, 4 6, 1 3 and 5 7: what shifting a dword of 4-bit
// codes by 4 brings together. Activations and weights hold pairs in that order.
//
//   x       [padded_cols / 2] dwords a token
//   S       [groups] sums of x' of a token, read where the weight has minima; a zero
//           point z is the minimum -s z
//   codes   plain   [pairs of panels][padded_cols / 2][2][lanes] dwords, bf16
//           table4  as linear_isa.h lays out bits 4
//           table8  [pairs of panels][padded_cols / 4][2][64] bytes; of 64, byte
//                   16 q + 8 h + 2 d + e is lane 4 q + d, half e of pair h (of the 4
//                   columns' two)
//   values  table4  bf16 [32]: what the 16 stored codes stand for, twice
//           table8  [2][256] bytes: the low bytes of what codes stand for, the high ones
//
// Plain data and function pointers. Nothing here allocates; safe from any thread.
#pragma once

#include <cstdint>

#include "kernels/ops/linear/linear_isa.h"

namespace nibble {

enum class Bf16Form : uint8_t { plain, table4, table8 };
inline constexpr int kBf16Forms = 3;
inline constexpr int kBf16Order[8] = {0, 2, 4, 6, 1, 3, 5, 7};

struct LinearBf16Isa {
  // Tokens that are cheaper straight from the codes than by decoding a panel first.
  int direct_tokens;

  // n values rounded to bf16, in pairs: (n + 7) / 8 * 4 dwords, zeros beyond n.
  void (*pair_row)(const float* x, int64_t n, uint32_t* out);
  // acc[m, 2 lanes] of panels p and p + 1 for `tokens` <= direct_tokens rows.
  //   x     [tokens, padded_cols / 2]
  //   sums  [tokens, groups]
  void (*direct[kBf16Forms])(const PanelCodes& w, int64_t p, int tokens,
                             const uint32_t* x, const float* sums, float* acc);
  // Padded columns [first, end), multiples of 8, of panels p and p + 1 as pairs:
  // out [(end - first) / 2][2][lanes].
  void (*decode[kBf16Forms])(const PanelCodes& w, int64_t p, int64_t first, int64_t end,
                             uint32_t* out);
  // acc[m, 2 lanes] (first = 0: set, else added to) of those columns, for mr = the panel
  // ISA's tile or small_tile rows.
  //   x     [(end - first) / 2, mr]
  //   sums  [groups, mr]
  //   u     as decode leaves it
  void (*tile)(const PanelCodes& w, int64_t p, int64_t first, int64_t end,
               const uint32_t* x, const float* sums, const uint32_t* u, float* acc);
  void (*small_tile)(const PanelCodes& w, int64_t p, int64_t first, int64_t end,
                     const uint32_t* x, const float* sums, const uint32_t* u, float* acc);
};

// The form that a row of bf16 activations has prepared.
inline Bf16Form bf16_form(int bits) {
  return bits == 4 ? Bf16Form::table4 : bits == 8 ? Bf16Form::table8 : Bf16Form::plain;
}
// Columns that a whole group takes.
inline int64_t padded_group_of(const PanelCodes& w) {
  return w.groups == 1 ? w.padded_cols : (w.group + 7) / 8 * 8;
}

namespace avx512bf16 {
extern const LinearBf16Isa linear_bf16_isa;
}

}  // namespace nibble
