// What an instruction set gives the linear rows, beside the panel product: reading codes.
//
// A panel is `lanes` outputs; two lie together as a pair. Codes, for the columns of each
// group padded to whole steps:
//   bits 4   [pairs][padded_cols / 8][2][lanes] dwords; byte b of a dword holds columns b
//            (low half) and b + 4 (high half); intN codes are stored + 8; `table` has
//            what the 16 codes stand for
//   bits 8   integers: [pairs][padded_cols / 4][2][lanes] dwords, byte b column b; intN
//            codes are stored + 128. FP8: [pairs][padded_cols / 4][2][4][lanes] bytes
//   bits 16  [panels][cols][lanes] bf16 or f16
//   bits 32  [panels][cols][lanes] f32
// so that a pair's codes are one stream. A unit is 4 * lanes bytes of one panel.
// Padding holds code 0; its activations are 0. Levels lie as [pairs][groups][2][lanes],
// in 16 bits where that loses nothing: they are read beside the codes.
//
// Plain data and function pointers. Nothing here allocates; safe from any thread.
#pragma once

#include <cstdint>

namespace nibble {

enum class LevelForm : uint8_t { f32, f16, bf16 };
struct PanelLevels {
  const uint8_t* data = nullptr;
  LevelForm form = LevelForm::f32;
  bool exist() const { return data != nullptr; }
};
// A vector of levels from the one at `at`.
template <class V>
inline typename V::F load_levels(const PanelLevels& levels, int64_t at) {
  if (levels.form == LevelForm::f32) {
    return V::load(reinterpret_cast<const float*>(levels.data) + at);
  }
  const uint16_t* p = reinterpret_cast<const uint16_t*>(levels.data) + at;
  return levels.form == LevelForm::f16 ? V::from_f16(p) : V::from_bf16(p);
}

struct PanelCodes {
  int64_t cols, group, groups, padded_cols;
  int64_t panel_bytes;
  bool is_signed;
  const float* table;  // [16]
  const uint8_t* values;  // as linear_bf16.h has them; null without
  const uint8_t* codes;
  PanelLevels scales, zeros, minima;
};

enum class PanelForm : uint8_t { f32, bf16, f16, int4, table4, int8, e4m3, e5m2 };
inline constexpr int kPanelForms = 8;

struct LinearIsa {
  // Tokens that are cheaper straight from the codes than by decoding a panel first.
  int direct_tokens;

  // acc[m, 2 lanes] of panels p and p + 1 for `tokens` <= direct_tokens rows.
  //   x     [tokens, padded_cols]
  //   sums  [tokens, groups], the sum of x over each group (read with zeros or minima)
  void (*direct_f32[kPanelForms])(const PanelCodes& w, int64_t p, int tokens,
                                  const float* x, const float* sums, float* acc);
  // Float activations of integer codes by int8 products, which is what decoding costs
  // least where there is VNNI; null elsewhere. A group's activations are 31-bit numbers
  // under one power of two, x = 2^-k (256^3 d3 + 256^2 d2 + 256 d1 + d0), so that each
  // digit's sum is exact and what is lost is 2^-31 of the group's largest.
  //   x       digits [padded_cols / 4, tokens, 4] dwords, d0 first
  //   starts  [groups, tokens, 4], -bias times the sum of the digits
  //   powers  [groups, tokens], 2^-k
  //   sums    [tokens, groups] as above
  int digit_tokens;
  // max |x|; infinity where one is not finite.
  float (*largest_of)(const float* x, int64_t n);
  // The digits of rint(x up), |x up| <= 2^30, `count` of them, columns from a multiple of
  // 4: `out` is at the first column's dwords of this token. Adds their sums to sums [4].
  void (*make_digits)(const float* x, int64_t count, float up, int64_t tokens,
                      int32_t* out, int32_t* sums);
  void (*digits_int4)(const PanelCodes& w, int64_t p, int tokens, const int32_t* x,
                      const int32_t* starts, const float* powers, const float* sums,
                      float* acc);
  void (*digits_int8)(const PanelCodes& w, int64_t p, int tokens, const int32_t* x,
                      const int32_t* starts, const float* powers, const float* sums,
                      float* acc);
  // Columns [first, first + count) of panel p as f32 [count, lanes]. They lie in one
  // group, first a multiple of 8 from its start, or are whole groups.
  void (*decode[kPanelForms])(const PanelCodes& w, int64_t p, int64_t first,
                              int64_t count, float* out);

  // int4 codes of panels p and p + 1 as bytes in the int8 arrangement: u
  // [padded_cols / 4][2][lanes] dwords.
  void (*unpack_int4)(const PanelCodes& w, int64_t p, uint8_t* u);
  // The sum of n codes.
  int32_t (*sum_codes)(const int8_t* codes, int64_t n);
  // The s8 definition (linear.h) but for the activation's scale and the bias:
  // acc[m, 2 lanes] of panels p and p + 1, for mr = tile or small_tile rows.
  //   x     packed codes [padded_cols / 4, mr, dwords]
  //   sums  [groups, mr], the sum of codes over each group; `lanes` more can be read
  //   u     the pair's bytes, as unpack_int4 leaves them and bits 8 are
  void (*tile_s8)(const PanelCodes& w, int64_t p, const int32_t* x, const int32_t* sums,
                  const uint8_t* u, int bias, float* acc);
  void (*small_s8)(const PanelCodes& w, int64_t p, const int32_t* x, const int32_t* sums,
                   const uint8_t* u, int bias, float* acc);
  // y[m, j] = acc[m, j] factors[m] (+ bias[j]), each step rounded, for `rows` rows of acc
  // [rows, 2 lanes] and all its columns; bias may be null.
  void (*store_s8)(const float* acc, int64_t rows, const float* factors, const float* bias,
                   float* y, int64_t stride);
  // total[m, j] = acc[m, j] factors[m] (+ total[m, j], fused, but for the first), both
  // [rows, 2 lanes].
  void (*add_s8)(const float* acc, int64_t rows, const float* factors, bool first,
                 float* total);
  // tile_s8 for `tokens` <= direct_s8_tokens rows straight from the codes.
  //   x     [padded_cols / 4, tokens, dwords]
  //   sums  [groups, tokens]
  int direct_s8_tokens;
  void (*direct_s8_int4)(const PanelCodes& w, int64_t p, int tokens, const int32_t* x,
                         const int32_t* sums, float* acc);
  void (*direct_s8_int8)(const PanelCodes& w, int64_t p, int tokens, const int32_t* x,
                         const int32_t* sums, float* acc);
};

namespace avx2 {
extern const LinearIsa linear_isa;
}
namespace avxvnni {
extern const LinearIsa linear_isa;
}
namespace avx512vnni {
extern const LinearIsa linear_isa;
}

}  // namespace nibble
