// A quantized matrix as MatMulNBits (com.microsoft) stores it, which ONNX Runtime
// multiplies without dequantizing it as a whole.
//
//   y = x W^T,   W[n, k] = (code[n, k] - zero_point[n, k / B]) * scale[n, k / B]
//
//   codes        uint8 [N, ceil(K / B), B * bits / 8], unsigned, the first code in the
//   low
//                bits of a byte; the last block is filled up with zeros
//   scales       f32 [N, ceil(K / B)]
//   zero_points  uint8 [N, ceil(ceil(K / B) * bits / 8)], packed as codes are, each row
//   from
//                a new byte; absent: 2^(bits - 1), the place of signed codes' 0
//
// Signed codes are written with 2^(bits - 1) added, codes of 3 (5, 6, 7) bits as 4 (8),
// levels of scales multiplied out in float, and groups that are no block (a row, 48
// columns) as several blocks of one scale: no value changes.
//
// unsupported: what onnx_weight.h has no form for, codes that are no integers, groups
// that are no multiple of 16, zero points outside the codes. The message says what was
// found.
#pragma once

#include <string>
#include <vector>

#include "kernels/scheme/coded_matrix.h"

namespace nibble {

// ONNX Runtime takes powers of two from 16; its CPU rows are made for at most 256.
inline constexpr int64_t kNBitsLowestBlock = 16;
inline constexpr int64_t kNBitsHighestBlock = 256;

struct NBitsForm {
  int64_t bits = 4;         // 2, 4 or 8
  int64_t block_size = 32;  // columns
  bool has_zero_points = false;
};
Result<NBitsForm> nbits_form(const QuantScheme& scheme, int64_t rows, int64_t cols,
                             const std::string& where);

struct NBitsWeight {
  NBitsForm form;
  int64_t blocks = 0;  // of a row
  std::string codes;   // raw bytes
  std::vector<float> scales;
  std::string zero_points;  // raw bytes; empty: none
};
Result<NBitsWeight> make_nbits_weight(const CodedMatrix& q, const std::string& where);

}  // namespace nibble
