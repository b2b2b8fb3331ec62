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

// Rows of codes, `row_bytes` apart, in groups of 64 bytes that lie `group_bytes` apart: the
// bytes of row j begin at codes + j * row_bytes, `first` bytes into the first group.
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

// Digits of a query, or of weights: 24-bit numbers under one factor, as int8 products
// take them (panel/digits.inc).
inline constexpr int kKvDigits = 3;
inline constexpr int kKvDigitHeads = 4;

// Products of codes by such digits, the codes stored as unsigned bytes, `bias` above the
// scheme's. Panels are ops/panel/panel.h's, `lanes` wide.
struct KvDigitsIsa {
  // 2 lanes positions (the last again where n are fewer), steps of 4 columns:
  //   u [dim / 4][2][lanes] dwords. Codes of 4 bits: of 8 columns first the even ones.
  void (*key_panels)(const KvCodes& k, int64_t n, int64_t dim, uint8_t* u);
  // Both fetch half of what is needed next, the product the other half.
  // n positions in steps of 4:
  //   u [panels][ceil(n / 4)][lanes] dwords, whose columns lie as value_column says
  void (*value_panels)(const KvCodes& v, int64_t n, int64_t dim, uint8_t* u);
  // acc [kKvDigits heads, 2 lanes], ops/panel/panel.h's s32 product, for heads <=
  // kKvDigitHeads; next_step bytes from `next` on are fetched a step, null: none.
  void (*product)(int heads, const int32_t* x, const uint8_t* w0, const uint8_t* w1,
                  int64_t stride, int64_t steps, const int32_t* start, int32_t* acc,
                  const uint8_t* next, int64_t next_step);
  // x[i] *= s[i] (null: 1), then to digits, `stride` dwords from step to step; adds their
  // sums to sums [kKvDigits]. Returns what a digit counts; NaN where an x is not finite.
  float (*make_digits)(float* x, const float* s, int64_t n, int64_t stride, int32_t* out,
                       int32_t* sums);
  // The number v[j] that acc [kKvDigits, 2 lanes] stands for, times `power`:
  //   a[j] = v[j] s[j] + factor o[j]        s null: 1; o null: 1
  void (*score_sums)(const int32_t* acc, float power, const float* s, const float* o,
                     float factor, float* a);
  //   y[j] = y[j] shrink + v[j] + add
  void (*value_sums)(const int32_t* acc, float power, float shrink, float add, float* y);
};
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
