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

struct KvDecodeIsa {
  void (*decode)(KvCode code, KvForm form, const uint8_t* codes, int64_t n,
                 const float* s, const float* o, float* x);
};

namespace avx2 {
extern const KvDecodeIsa kv_decode_isa;
}
namespace avx512vnni {
extern const KvDecodeIsa kv_decode_isa;
}

}  // namespace nibble
