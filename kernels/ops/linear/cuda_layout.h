// Where the CUDA linear kernels find a weight's codes, scales and zero points.
//
// Rows go in tiles of 32, two mma tiles of 16; columns in units, so that a lane's codes
// of an mma tile and a unit are 16 bytes, a warp's 512 in a row:
//
//   codes   [tiles][units][2][32 lanes][16 bytes]   unit: 64 columns of 4 bits, 32 of 8
//   scales  [tiles][groups][32]   f32, f16 or e8m0  (level_place)
//   zeros   [tiles][groups][32]   uint8 codes
//
// The sum over k has no order that matters for the fragments, so a lane takes columns
// that lie together in x: of each 32 columns (a slab) lane 4 g + t takes 8 t .. 8 t + 7,
// read as 16 bytes of f16. Step s of a slab is one mma m16n8k16, whose k 2t, 2t+1, 2t+8,
// 2t+9 are columns 8 t + 4 s .. + 3; for int8 activations a slab is one mma m16n8k32,
// whose k 4t .. and 4t + 16 .. are columns 8 t .. and 8 t + 4 ...
//
// Of a lane's 4-bit word (one step, rows g and g + 8):
//   int4    pair i of {(g; 0, 1), (g + 8; 0, 1), (g; 2, 3), (g + 8; 2, 3)} at bits 4 i
//           and 16 + 4 i: one lop3 makes two f16 of it
//   table4  pair i in byte i, the first column in the low half: an index into pairs
// 8-bit words, two a step: word 2 s has row g, word 2 s + 1 row g + 8:
//   float activations  columns 0, 1 in bytes 1 and 3, columns 2, 3 in bytes 0 and 2: the
//                      upper bytes of two f16, and the same after a shift by 8
//   int8 activations   four words: (g; 0..3), (g + 8; 0..3), (g; 4..7), (g + 8; 4..7)
//
// Every function maps an index to an index, is inverted by a test, and allocates nothing.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.h"

namespace nibble::cuda {

enum class LinearForm : uint8_t { int4, table4, int8, e4m3, e5m2, int8_s8 };
enum class LinearScale : uint8_t { f32, f16, e8m0 };

inline constexpr int kTileRows = 32;
inline constexpr int kSlab = 32;  // columns

NIBBLE_HOST_DEVICE constexpr bool is_4_bit(LinearForm form) {
  return form == LinearForm::int4 || form == LinearForm::table4;
}
NIBBLE_HOST_DEVICE constexpr int unit_columns(LinearForm form) {
  return is_4_bit(form) ? 64 : 32;
}
NIBBLE_HOST_DEVICE constexpr int scale_bytes(LinearScale scale) {
  return scale == LinearScale::f32 ? 4 : scale == LinearScale::f16 ? 2 : 1;
}

// Of the 32 rows of a tile: lane g's rows 16 m + 8 h + g, m and h in {0, 1}, together.
NIBBLE_HOST_DEVICE constexpr int level_place(int row) {
  return row % 8 * 4 + row / 16 * 2 + row / 8 % 2;
}

// m with slab * m >> 31 == slab / (group / 32): ceil(2^31 / (group / 32)), which is exact
// while the product of the two is below 2^31. Rows of kMostColumns have 2^15 slabs, and
// so has a group at most. One group: 0.
inline constexpr int kMostColumns = 1 << 20;
inline uint32_t group_inverse(int group, int groups) {
  if (groups == 1) return 0;
  const uint32_t slabs = static_cast<uint32_t>(group / kSlab);
  return ((uint32_t{1} << 31) + slabs - 1) / slabs;
}

struct CodePlace {
  int64_t byte = 0;
  int shift = 0;  // of the code in it: 0 or 4
};
inline CodePlace code_place(LinearForm form, int64_t units, int64_t row, int64_t column) {
  const int64_t unit = column / unit_columns(form);
  const int64_t tile = row / kTileRows;
  const int m = static_cast<int>(row / 16 % 2), h = static_cast<int>(row / 8 % 2),
            g = static_cast<int>(row % 8);
  const int in_unit = static_cast<int>(column % unit_columns(form));
  const int slab = in_unit / kSlab, t = in_unit % kSlab / 8, step = in_unit / 4 % 2,
            i = in_unit % 4;
  const int lane = 4 * g + t;
  const int64_t lane_byte = (((tile * units + unit) * 2 + m) * 32 + lane) * 16;
  if (is_4_bit(form)) {
    const int64_t word = lane_byte + 4 * (2 * slab + step);
    const int pair = i / 2 * 2 + h;
    if (form == LinearForm::table4) return {word + pair, i % 2 * 4};
    const int bit = i % 2 * 16 + 4 * pair;
    return {word + bit / 8, bit % 8};
  }
  if (form == LinearForm::int8_s8) return {lane_byte + 4 * (2 * step + h) + i, 0};
  constexpr int kByte[4] = {1, 3, 0, 2};
  return {lane_byte + 4 * (2 * step + h) + kByte[i], 0};
}

}  // namespace nibble::cuda
