// The keys or the values of one attention layer: rows that grow, under any scheme that a
// KV cache can have (kernels/scheme/kv_scheme.h).
//
//   stored row t = pack(quantize(x[t], choose_scales(x[t])))     r, gN blocks, absmax
//   stored row t = pack(quantize(x[t], s))                       a t block, s given
//   stored rows b T .. b T + T - 1 likewise together             bTxC blocks, once all
//   are
//                                                                there; f16 before that
//
// so that what is read back is, bit for bit, what scheme/ and packing/ say it is.
//
//   x  [rows, width] f32
//
// A call that appends many rows completes blocks before anything is read: with bTxC
// blocks the queries of a long prompt see the completed blocks of that same prompt
// quantized, where tokens that came one by one would have seen their newest block in f16.
//
// append: out_of_range: a value is not finite, or too large for f16 scales or the f16 of
// a partial block (names the row). create: unsupported, invalid_argument: the scheme's;
// failed_precondition: a static scheme without its scale.
// truncate into a completed block brings back its values as they were stored.
// Memory is taken at create, for `capacity` rows; append and read use per-thread scratch,
// append of schemes with several scale levels or e8m0 scales allocates. Reading is safe
// from any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/huge_pages.h"
#include "kernels/base/matrix_view.h"
#include "kernels/ops/kv_attention/kv_decode.h"
#include "kernels/scheme/kv_scheme.h"

namespace nibble {

// Rows of bytes as attention reads them: of each kPositions rows first the first `group`
// bytes of every row, then the next, so that what one head needs of them lies together.
struct KvBytes {
  static constexpr int64_t kPositions = 128;
  int64_t rows = 0, row_bytes = 0, group = 1;  // which divides row_bytes
  std::vector<uint8_t, HugePages<uint8_t>> bytes;

  KvBytes() = default;
  // Rows whose size `group` does not divide are one group.
  KvBytes(int64_t rows, int64_t row_bytes, int64_t group);
  // Where a byte lies: `group` bytes before that of the next row of the block, and
  // group_bytes(row) before that of the next group.
  int64_t offset(int64_t row, int64_t byte) const {
    const int64_t block = row / kPositions * kPositions;
    return block * row_bytes + byte / group * group_bytes(row) + (row - block) * group +
           byte % group;
  }
  int64_t group_bytes(int64_t row) const {
    const int64_t left = rows - row / kPositions * kPositions;
    return (left < kPositions ? left : kPositions) * group;
  }
  void put(int64_t row, const uint8_t* from);
  // Bytes [first, first + n) of a row, in `scratch` where they do not lie together.
  const uint8_t* get(int64_t row, int64_t first, int64_t n, uint8_t* scratch) const;
};

class KvRows {
 public:
  // scale: of a static scheme, else 0.
  static Result<KvRows> create(const QuantScheme& scheme, int64_t capacity, int64_t width,
                               float scale = 0);

  Status append(MatrixView<const float> x);
  void truncate(int64_t length);

  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  int64_t width() const { return width_; }
  const QuantScheme& scheme() const { return scheme_; }
  float scale() const { return scale_; }
  // Codes, scales, offsets and the partial block, for the whole capacity; and what they
  // would be of such rows, without taking the memory.
  int64_t bytes() const;
  static int64_t bytes_for(const QuantScheme& scheme, int64_t capacity, int64_t width);

  // The rows of an f32 cache, null under any other scheme.
  const float* floats() const {
    return scheme_ == QuantScheme{} ? reinterpret_cast<const float*>(codes_.bytes.data())
                                    : nullptr;
  }
  // Rows [first, first + x.rows), columns [column, column + x.cols). isa null: the
  // definition; else by vectors, the same bits.
  void read(const KvDecodeIsa* isa, int64_t first, int64_t column,
            MatrixView<float> x) const;
  // Are columns [column, column + count) codes that have a KvCode, begin in a byte of
  // their own, and have one scale a position (or one a column in blocks of positions)?
  bool has_codes(int64_t column, int64_t count) const;
  // Such codes, from `row` on to the end of its block of KvBytes.
  KvCodes codes(int64_t row, int64_t column) const;
  bool is_scaled() const { return !scheme_.is_float(); }
  // Positions that share scales, one a column (1: each has its own), and the rows that
  // are in whole blocks of them.
  int64_t positions() const { return positions_; }
  int64_t complete() const { return length_ / positions_ * positions_; }
  // Of positions with their own levels: those of rows [first, first + n), of one block of
  // KvBytes, at `column`.
  void row_levels(const KvDecodeIsa& isa, int64_t first, int64_t n, int64_t column,
                  float* scales, float* offsets) const;
  // Of a block of positions: those of columns [column, column + count).
  void block_levels(const KvDecodeIsa* isa, int64_t block, int64_t column, int64_t count,
                    float* scales, float* offsets) const;

 private:
  struct Level {
    ScaleLevel level;
    KvBytes values;                       // a row a position, or block of positions
    int64_t index(int64_t column) const;  // of the value in its row
    float value(int64_t row, int64_t column) const;
  };
  Status store(MatrixView<const float> x, int64_t first);  // whole blocks
  // One, without an allocation; false: store has another way, or an error.
  bool store_block(MatrixView<const float> x, int64_t first);

  QuantScheme scheme_;
  int64_t capacity_ = 0, width_ = 0, length_ = 0;
  int64_t positions_ = 1;  // that share scales
  float scale_ = 0;        // of every position, where the scheme is static
  KvBytes codes_;
  std::vector<Level> scales_, offsets_;
  std::vector<uint16_t> partial_;  // [positions_, width_] f16
};

}  // namespace nibble
