// The vector of AVX-512 with VNNI, as the *_vector.inc files use it: 16 floats or int32.
//
// Included by x86_avx512vnni.cpp files only.
#pragma once

// GCC 12's own header starts undefined vectors as `x = x` (bug 105593), so every
// conversion warns; the warning says nothing about the code of this file's users.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include <cstdint>

namespace nibble::avx512vnni {

struct V {
  using F = __m512;
  using I = __m512i;
  static constexpr int kLanes = 16;
  // 24 accumulators, 2 weights, and broadcasts from memory: 32 registers.
  static constexpr int kTile = 12;
  static constexpr int kSmallTile = 4;
  static constexpr bool kOneTable = true;  // of 16 floats in a register
  static constexpr int kDwords = 1;
  // Sums that registers hold beside weights and what unpacks them; tokens whose products
  // come straight from codes.
  static constexpr int kSums = 16;
  static constexpr int kDirectS8 = 8;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
  }
  // Into the second cache: what the first one has no room for yet.
  static void prefetch_near(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
  }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static __mmask16 mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  // The first n < kLanes values; the others are 0.
  static F load_first(const float* p, int64_t n) {
    return _mm512_maskz_loadu_ps(mask(n), p);
  }
  static void store_first(float* p, int64_t n, F x) {
    _mm512_mask_storeu_ps(p, mask(n), x);
  }
  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F absolute(F a) { return _mm512_abs_ps(a); }
  // Halves first: the same order whatever the length.
  static float sum(F x) {
    const __m256 a =
        _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
  }
  // The four sums to p[0..3].
  static void store_sums(float* p, const F x[4]) {
    const auto half = [](F v) {
      return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    };
    const __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(half(x[0]), half(x[1])),
                                    _mm256_hadd_ps(half(x[2]), half(x[3])));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
  }
  static float highest(F x) {
    const __m256 a =
        _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
  }

  static I load_int(const void* p) { return _mm512_loadu_si512(p); }
  static void store_int(void* p, I x) { _mm512_storeu_si512(p, x); }
  static I set1_int(int32_t x) { return _mm512_set1_epi32(x); }
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static I sub_int(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I mul_int(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static I bit_and(I a, I b) { return _mm512_and_si512(a, b); }
  static I bit_xor(I a, I b) { return _mm512_xor_si512(a, b); }
  static I left(I a, int n) { return _mm512_slli_epi32(a, static_cast<unsigned>(n)); }
  static I right(I a, int n) { return _mm512_srli_epi32(a, static_cast<unsigned>(n)); }
  static I right_signed(I a, int n) {
    return _mm512_srai_epi32(a, static_cast<unsigned>(n));
  }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static I to_int(F a) { return _mm512_cvtps_epi32(a); }  // half to even
  static F as_float(I a) { return _mm512_castsi512_ps(a); }
  // 16 floats, and table[index & 15]
  using Table = F;
  static Table load_table(const float* p) { return load(p); }
  static F look_up(Table table, I index) { return _mm512_permutexvar_ps(index, table); }
  static F from_bf16(const uint16_t* p) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return as_float(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  static F from_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  // FP8 codes as f16: e5m2 is its upper half; e4m3 stands for 2^-8 of its value there
  // (the exponent's bias is 15, not 7), subnormals too. Widening with the sign puts that
  // at bits 15 and 14; the mask takes the lower one away.
  static F from_e5m2(const uint8_t* p) {
    const __m256i x =
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm512_cvtph_ps(_mm256_slli_epi16(x, 8));
  }
  static F from_e4m3(const uint8_t* p) {
    const __m256i x =
        _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm512_cvtph_ps(
        _mm256_and_si256(_mm256_slli_epi16(x, 7), _mm256_set1_epi16(-0x4080)));
  }
  // The low byte of each int32, to 16 bytes.
  static void store_bytes(uint8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
  // Of the 4 dwords in each 16 bytes, byte b of dword i becomes byte i of dword b.
  static I turn_bytes(I x) {
    return _mm512_shuffle_epi8(
        x, _mm512_broadcast_i32x4(
               _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
  }
  // 16 dwords of a byte of each, a's the lowest.
  static I interleave(const uint8_t* a, const uint8_t* b, const uint8_t* c,
                      const uint8_t* d) {
    const auto row = [](const uint8_t* p) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    };
    I x = _mm512_castsi128_si512(row(a));
    x = _mm512_inserti32x4(x, row(b), 1);
    x = _mm512_inserti32x4(x, row(c), 2);
    x = _mm512_inserti32x4(x, row(d), 3);
    const I quarters =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return turn_bytes(_mm512_permutexvar_epi32(quarters, x));
  }
  // The first N dwords of each 16 bytes, `count` of those, `stride` dwords apart.
  template <int N>
  static void store_quarters(int32_t* p, int64_t stride, I x, int64_t count) {
    const __m128i parts[4] = {_mm512_castsi512_si128(x), _mm512_extracti32x4_epi32(x, 1),
                              _mm512_extracti32x4_epi32(x, 2),
                              _mm512_extracti32x4_epi32(x, 3)};
    for (int64_t i = 0; i < count; ++i) {
      _mm_mask_storeu_epi32(p + i * stride, (1 << N) - 1, parts[i]);
    }
  }
  static I from_u8(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I from_s8(const uint8_t* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // acc + sum of 4 products u * x in each lane; x is one step, the same for all lanes.
  // Assembler, because GCC 12 copies and spills the intrinsic's accumulators: half speed.
  static I dot(I acc, I u, const int32_t* x) {
    const I value = _mm512_set1_epi32(*x);
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(value));
    return acc;
  }
};

}  // namespace nibble::avx512vnni
