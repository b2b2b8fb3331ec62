// The vector of AVX2 with FMA, as the *_vector.inc files use it: 8 floats or int32.
//
// Included by x86_avx2.cpp files only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace nibble::avx2 {

struct V {
  using F = __m256;
  using I = __m256i;
  static constexpr int kLanes = 8;
  // 12 accumulators, 2 weights and a broadcast: 16 registers.
  static constexpr int kTile = 6;
  static constexpr int kSmallTile = 2;
  static constexpr bool kOneTable = false;  // of 16 floats in a register
  static constexpr int kDwords = 2;
  // Sums that registers hold beside weights, and tokens whose products come straight from
  // codes: without VNNI, splitting bytes costs as much as the products.
  static constexpr int kSums = 8;
  static constexpr int kDirectS8 = 1;

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
  }
  // Into the second cache: what the first one has no room for yet.
  static void prefetch_near(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
  }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static I mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  // The first n < kLanes values; the others are 0.
  static F load_first(const float* p, int64_t n) {
    return _mm256_maskload_ps(p, mask(n));
  }
  static void store_first(float* p, int64_t n, F x) {
    _mm256_maskstore_ps(p, mask(n), x);
  }
  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F absolute(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static float sum(F x) {
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
  }
  // The four sums to p[0..3].
  static void store_sums(float* p, const F x[4]) {
    const F t =
        _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
  }
  static float highest(F x) {
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
  }

  static I load_int(const void* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void store_int(void* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
  }
  static I set1_int(int32_t x) { return _mm256_set1_epi32(x); }
  static I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  static I sub_int(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I mul_int(I a, I b) { return _mm256_mullo_epi32(a, b); }
  static I bit_and(I a, I b) { return _mm256_and_si256(a, b); }
  static I bit_xor(I a, I b) { return _mm256_xor_si256(a, b); }
  static I left(I a, int n) { return _mm256_slli_epi32(a, n); }
  static I right(I a, int n) { return _mm256_srli_epi32(a, n); }
  static I right_signed(I a, int n) { return _mm256_srai_epi32(a, n); }
  static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  static I to_int(F a) { return _mm256_cvtps_epi32(a); }  // half to even
  static F as_float(I a) { return _mm256_castsi256_ps(a); }
  // 16 floats, and table[index & 15]: bit 3 of an index chooses the half.
  struct Table {
    F low, high;
  };
  static Table load_table(const float* p) { return {load(p), load(p + 8)}; }
  static F look_up(const Table& table, I index) {
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, index),
                            _mm256_permutevar8x32_ps(table.high, index),
                            as_float(left(index, 28)));
  }
  // FP8 codes as f16: e5m2 is its upper half; e4m3 stands for 2^-8 of its value there
  // (the exponent's bias is 15, not 7), subnormals too. Widening with the sign puts that
  // at bits 15 and 14; the mask takes the lower one away.
  static F from_e5m2(const uint8_t* p) {
    const __m128i x =
        _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return _mm256_cvtph_ps(_mm_slli_epi16(x, 8));
  }
  static F from_e4m3(const uint8_t* p) {
    const __m128i x =
        _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(x, 7), _mm_set1_epi16(-0x4080)));
  }
  static F from_bf16(const uint16_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return as_float(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static F from_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // The low byte of each int32, to 8 bytes.
  static void store_bytes(uint8_t* p, I x) {
    const I low = _mm256_shuffle_epi8(
        x, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                            0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m128i both =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), both);
  }
  // Of the 4 dwords in each 16 bytes, byte b of dword i becomes byte i of dword b.
  static I turn_bytes(I x) {
    return _mm256_shuffle_epi8(
        x, _mm256_broadcastsi128_si256(
               _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
  }
  // 8 dwords of a byte of each, a's the lowest.
  static I interleave(const uint8_t* a, const uint8_t* b, const uint8_t* c,
                      const uint8_t* d) {
    const auto row = [](const uint8_t* p) {
      return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    };
    const __m128i ab = _mm_unpacklo_epi8(row(a), row(b));
    const __m128i cd = _mm_unpacklo_epi8(row(c), row(d));
    return _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd));
  }
  // The first N dwords of each 16 bytes, `count` of those, `stride` dwords apart.
  template <int N>
  static void store_quarters(int32_t* p, int64_t stride, I x, int64_t count) {
    const __m128i parts[2] = {_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)};
    const __m128i first =
        _mm_setr_epi32(-1, N > 1 ? -1 : 0, N > 2 ? -1 : 0, N > 3 ? -1 : 0);
    for (int64_t i = 0; i < count; ++i) {
      _mm_maskstore_epi32(p + i * stride, first, parts[i]);
    }
  }
  static I from_u8(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static I from_s8(const uint8_t* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  // acc + sum of 4 products u * x in each lane; x is one step, the same for all lanes.
  // Bytes are widened to 16 bits: vpmaddubsw would saturate (2 * 255 * 127 > 2^15).
  static I dot(I acc, I u, const int32_t* x) {
    const I even = _mm256_and_si256(u, _mm256_set1_epi32(0x00ff00ff));
    const I odd = _mm256_srli_epi16(u, 8);
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(even, _mm256_set1_epi32(x[0])));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(odd, _mm256_set1_epi32(x[1])));
  }
};

}  // namespace nibble::avx2
