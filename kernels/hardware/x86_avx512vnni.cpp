// GCC 12's own header starts undefined vectors as `x = x` (bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "kernels/hardware/peak_loop.h"
#include "kernels/hardware/probe_isa.h"

// 16 accumulators: a latency of 5 at up to three instructions a cycle hides behind them.
namespace nibble::avx512vnni {

#define PEAK(vector, width, instruction, operands, out)                            \
  NIBBLE_PEAK_LOOP(NIBBLE_EACH_16, vector, width, instruction, "16", "17", rounds, \
                   operands, out, , "xmm16", "xmm17")
#define DPBUSD_ZMM(i) "vpdpbusd %%zmm16, %%zmm17, %%zmm" i "\n\t"
#define DPBUSD_YMM(i) "vpdpbusd %%ymm16, %%ymm17, %%ymm" i "\n\t"
#define FMA(i) "vfmadd231ps %%zmm16, %%zmm17, %%zmm" i "\n\t"
#define PERMUTE_WORDS(i) "vpermw %%zmm16, %%zmm" i ", %%zmm" i "\n\t"
#define PERMUTE_FLOATS(i) "vpermps %%zmm16, %%zmm" i ", %%zmm" i "\n\t"

int64_t peak_dpbusd_zmm(int64_t rounds) {
  alignas(64) int8_t ones[128];
  for (int8_t& one : ones) one = 1;
  alignas(64) int32_t out[16 * 16];
  PEAK(zmm, "64", DPBUSD_ZMM, ones, out);
  return peak_sum(out, 16 * 16);
}

int64_t peak_dpbusd_ymm(int64_t rounds) {
  alignas(64) int8_t ones[64];
  for (int8_t& one : ones) one = 1;
  alignas(64) int32_t out[16 * 8];
  PEAK(ymm, "32", DPBUSD_YMM, ones, out);
  return peak_sum(out, 16 * 8);
}

int64_t peak_fma(int64_t rounds) {
  alignas(64) float ones[32];
  for (float& one : ones) one = 1;
  alignas(64) float out[16 * 16];
  PEAK(zmm, "64", FMA, ones, out);
  return peak_sum(out, 16 * 16);
}

// table[i] = i + 1 modulo 16: an accumulator of indices counts the lookups.
int64_t peak_permute_words(int64_t rounds) {
  alignas(64) int16_t table[64];
  for (int i = 0; i < 64; ++i) table[i] = static_cast<int16_t>((i + 1) % 16);
  alignas(64) int16_t out[16 * 32];
  PEAK(zmm, "64", PERMUTE_WORDS, table, out);
  return peak_sum(out, 16 * 32);
}

int64_t peak_permute_floats(int64_t rounds) {
  alignas(64) int32_t table[32];
  for (int i = 0; i < 32; ++i) table[i] = (i + 1) % 16;
  alignas(64) int32_t out[16 * 16];
  PEAK(zmm, "64", PERMUTE_FLOATS, table, out);
  return peak_sum(out, 16 * 16);
}

uint64_t read_words(const uint64_t* words, int64_t n, int64_t passes) {
  constexpr int kVectors = 8;
  __m512i acc[kVectors];
  for (__m512i& a : acc) a = _mm512_setzero_si512();
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t i = 0; i < n; i += 8 * kVectors) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        acc[j] = _mm512_add_epi64(acc[j], _mm512_loadu_si512(words + i + 8 * j));
      }
    }
    __asm__ volatile("" ::: "memory");  // the next pass reads again
  }
  uint64_t sum = 0;
  for (const __m512i& a : acc) {
    alignas(64) uint64_t lanes[8];
    _mm512_store_si512(lanes, a);
    for (const uint64_t lane : lanes) sum += lane;
  }
  return sum;
}

}  // namespace nibble::avx512vnni
