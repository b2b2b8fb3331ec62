// What an instruction set gives a quantized KV cache: stored codes to floats, and the
// products of a few query rows straight from codes.
//
//   x[i] = s[i] * q[i]   |   s[i] * (q[i] - o[i])   |   s[i] * q[i] + o[i]
//
// in f32, rounded after each operation as scheme/coded_matrix.h does: the same bits.
//
//   codes  n codes of 8 or 4 bits (the first in a byte's low half), n f16 or bf16 values
//   s, o   [n]; not read where the form has none
//
// Plain data and function pointers, so that ISA files need nothing of std. Nothing here
// allocates; safe from any thread.
#pragma once

#include <cstdint>

namespace nibble {

enum class KvCode : uint8_t { s8, u8, s4, u4, e4m3, f16, bf16, other };
enum class KvForm : uint8_t { scaled, zero_point, minimum, plain };

inline int bits_of(KvCode code) {
  if (code == KvCode::s4 || code == KvCode::u4) return 4;
  return code == KvCode::f16 || code == KvCode::bf16 ? 16 : 8;
}

// Rows of codes, `row_bytes` apart, in groups of 64 bytes that lie `group_bytes` apart:
// the bytes of row j begin at codes + j * row_bytes, `first` bytes into the first group.
struct KvCodes {
  KvCode code;
  KvForm form;
  const uint8_t* codes = nullptr;
  int64_t row_bytes = 0, group_bytes = 64, first = 0;
  // What is needed next: as many bytes from here on are fetched as rows are read, in the
  // order in which they lie and spread over the work, because fetches beyond what memory
  // has under way are dropped; null for nothing.
  const uint8_t* next = nullptr;

  // Where byte b of row 0 lies; 64 - (first + b) % 64 bytes from there on lie together.
  const uint8_t* at(int64_t b) const {
    return codes + (first + b) / 64 * group_bytes + (first + b) % 64;
  }
};

// Rows of n numbers as digits (panel/digits.inc), for int8 products with codes that are
// unsigned bytes, `bias` above the scheme's.
inline constexpr int kKvDigits = 3;  // of 24 bits
struct KvDigits {
  int32_t* dwords;  // [rows, steps, kKvDigits], steps = ceil(n / 4)
  int32_t* starts;  // [rows, kKvDigits], -bias times the sum of the digits
  float* powers;    // [rows], what a digit counts
  int64_t steps;
};

// Attention of a few query rows by digits. What is needed next is fetched in full while
// the first rows are at work.
struct KvDigitsIsa {
  static constexpr int kPositions = 16;  // that scores takes together
  // x[i] *= s[i] (null: 1), then to digits; adds their sums to sums [kKvDigits]. Returns
  // what a digit counts; NaN where an x is not finite.
  float (*make_digits)(float* x, const float* s, int64_t n, int32_t* dwords,
                       int32_t* sums);
  //   a[r, j] = s[j] sum_d q[r, d] code[j, d] + factors[r] o[j]     j < n; null: 1
  // The query's columns in the order of to_step_order. a's rows lie `stride` apart and
  // have room for whole vectors, as s and o have; sums [rows, kKvDigits, 16] is working
  // memory.
  void (*scores)(const KvCodes& k, int64_t dim, int64_t n, const KvDigits& q,
                 int64_t rows, const float* s, const float* o, const float* factors,
                 int32_t* sums, float* a, int64_t stride);
  //   y[r, c] = y[r, c] shrinks[r] + factors[r] (sum_j w[r, j] code[j, d] + adds[r])
  // d = value_column(c) for whole vectors of 64 bytes of codes; y's rows `size` apart.
  void (*weighted_sum)(const KvCodes& v, int64_t dim, int64_t n, const KvDigits& w,
                       int64_t rows, const float* shrinks, const float* factors,
                       const float* adds, float* y, int64_t size);
};
// The column of an output of weighted_sum: bytes of 4 rows interleave within quarters of
// a vector. halves: codes of 4 bits.
inline int64_t value_column(bool halves, int64_t c) {
  const int64_t vector = c / 16, lane = c % 16;
  const int64_t byte = lane / 4 * 16 + vector % 4 * 4 + lane % 4;
  if (!halves) return vector / 4 * 64 + byte;
  return vector / 8 * 128 + 2 * byte + vector % 8 / 4;
}
// Columns as steps of scores take them: of 8 of 4 bits first the even ones.
inline void to_step_order(bool halves, const float* from, int64_t n, float* to) {
  if (!halves) {
    for (int64_t d = 0; d < n; ++d) to[d] = from[d];
    return;
  }
  for (int64_t d = 0; d < n; d += 8) {
    for (int i = 0; i < 4; ++i)
      to[d + i] = from[d + 2 * i], to[d + 4 + i] = from[d + 2 * i + 1];
  }
}
inline int kv_bias(KvCode code) {
  if (code == KvCode::s8) return 128;
  return code == KvCode::s4 ? 8 : 0;
}

struct KvDecodeIsa {
  void (*decode)(KvCode code, KvForm form, const uint8_t* codes, int64_t n,
                 const float* s, const float* o, float* x);
  // Attention of a few query rows straight from codes of 8 or 16 bits, dim a multiple of
  // `lanes`:
  //   a[h, j] = s[j] * sum_d q[h, d] * code[j, d]       h < heads <= direct_heads
  //   y[h, d] = (sum_j a[h, j] * code[j, d]) * factor[h]
  // q, y [heads, dim]; a's rows lie `stride` apart; s may be null (1)
  int lanes;
  int direct_heads;
  void (*scores)(const KvCodes& k, const float* q, int heads, int64_t dim, int64_t n,
                 const float* s, float* a, int64_t stride);
  void (*weighted_sum)(const KvCodes& v, const float* a, int64_t stride, int heads,
                       int64_t dim, int64_t n, const float* factor, float* y);
  const KvDigitsIsa* digits;  // null where int8 products would not pay
};

namespace avx2 {
extern const KvDecodeIsa kv_decode_isa;
}
namespace avx512vnni {
extern const KvDecodeIsa kv_decode_isa;
}

}  // namespace nibble
