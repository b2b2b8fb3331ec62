// A quantized matrix in its canonical bits: what an artifact stores and kernels repack
// from.
//
// codes: each row is a dense little-endian bit stream (code i of b bits at bits i*b ..
// i*b+b-1), intN codes in two's complement, padded with zero bits to a whole byte:
// row_bytes = ceil(cols * b / 8).
// A level: values in row-major order. f32, f16, bf16, e4m3, e5m2, e8m0, int8, uint8,
// dyn8: one after the other. Elements of fewer than 8 bits: per level row a dense stream
// as above.
//
// pack(unpack(p)) == p byte for byte.
// data_loss, from unpack and check_packed: sizes disagree, padding bits are not zero, a
// code stands for no number (NaN, ternary 3, the unused code of a narrow scheme), a
// level's value is not finite. invalid_argument, from pack: a code or a level's value is
// not one of its element's.
#pragma once

#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

struct PackedLevel {
  Bytes values;
  float shift = 0;
};

struct PackedTensor {
  QuantScheme scheme;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<int64_t>
      shape;  // the weight's own shape, e.g. [out, in, kh, kw]; product = rows * cols
  Bytes codes;
  std::vector<PackedLevel> scales;
  std::vector<PackedLevel> offsets;

  int64_t bytes() const;  // all of it, shifts included
  void release_pages() const;  // Bytes::release_pages of all of it
};

int64_t packed_row_bytes(Element element, int64_t cols);
int64_t packed_level_bytes(const ScaleLevel& level, int64_t rows, int64_t cols);

Result<PackedTensor> pack(const CodedMatrix& q, std::vector<int64_t> shape);
Result<CodedMatrix> unpack(const PackedTensor& packed);
// The same into a matrix that is there, whose memory is used again; and without its
// codes.
Status unpack(const PackedTensor& packed, CodedMatrix& q);
Status unpack_levels(const PackedTensor& packed, CodedMatrix& q);
// unpack's codes of the rows [first, first + rows), of a tensor whose sizes are sound.
Status unpack_rows(const PackedTensor& packed, int64_t first, int64_t rows,
                   uint8_t* codes);
// Checks every size against scheme, rows and cols: call it on anything read from a file.
Status check_packed(const PackedTensor& packed);

// Rows [first, first + x.rows) dequantized; the same floats as
// dequantize(unpack(packed)).
Status dequantize_rows(const PackedTensor& packed, int64_t first, MatrixView<float> x);

}  // namespace nibble
