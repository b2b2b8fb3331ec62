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
// Memory is taken at create, for `capacity` rows. Reading is safe from any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/base/huge_pages.h"
#include "kernels/base/matrix_view.h"
#include "kernels/ops/kv_attention/kv_decode.h"
#include "kernels/scheme/kv_scheme.h"

namespace nibble {

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
    return scheme_ == QuantScheme{} ? reinterpret_cast<const float*>(codes_.data())
                                    : nullptr;
  }
  // Rows [first, first + x.rows), columns [column, column + x.cols). isa null: the
  // definition; else by vectors, the same bits.
  void read(const KvDecodeIsa* isa, int64_t first, int64_t column,
            MatrixView<float> x) const;
  // Columns [column, column + count) as codes with at most one scale a row, from row 0
  // on; nothing where the scheme has more, an offset, blocks of positions, or codes that
  // KvDecodeIsa does not multiply. scale_rows: those scales of rows [first, first + n).
  std::optional<KvCodes> codes(int64_t column, int64_t count) const;
  bool is_scaled() const { return !scheme_.is_float(); }
  void scale_rows(const KvDecodeIsa& isa, int64_t first, int64_t n, int64_t column,
                  float* scales) const;

 private:
  struct Level {
    ScaleLevel level;
    int64_t row_bytes = 0;  // of one position, or of one block of positions
    std::vector<uint8_t> values;
    float value(int64_t row, int64_t column) const;
  };
  Status store(MatrixView<const float> x, int64_t first);  // whole blocks
  void expand_block(int64_t block, int64_t column, int64_t count, float* scales,
                    float* offsets) const;

  QuantScheme scheme_;
  int64_t capacity_ = 0, width_ = 0, length_ = 0;
  int64_t positions_ = 1;  // that share scales
  float scale_ = 0;        // of every position, where the scheme is static
  int64_t row_bytes_ = 0;
  std::vector<uint8_t, HugePages<uint8_t>> codes_;
  std::vector<Level> scales_, offsets_;
  std::vector<uint16_t> partial_;  // [positions_, width_] f16
};

}  // namespace nibble
