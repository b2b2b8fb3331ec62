// What an instruction set gives a quantized KV cache: stored codes to floats.
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

// Rows of codes, `row_bytes` apart, that stand for s[j] * code.
struct KvCodes {
  KvCode code;
  const uint8_t* codes;
  int64_t row_bytes;
  // What is needed next: as many bytes from here on are fetched as rows are read, in the
  // order in which they lie; null for nothing.
  const uint8_t* next = nullptr;
};

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
};

namespace avx2 {
extern const KvDecodeIsa kv_decode_isa;
}
namespace avx512vnni {
extern const KvDecodeIsa kv_decode_isa;
}

}  // namespace nibble
