#include <immintrin.h>

#include "kernels/hardware/peak_loop.h"
#include "kernels/hardware/probe_isa.h"

// Two instructions a cycle of latency 4 (FMA) need 8 accumulators to hide it; 16
// registers leave 12 beside the operands.
namespace nibble::avx2 {

// Rows widen int8 codes to 16 bits: sums of two in vpmaddubsw would saturate.
#define MADDWD(i)                            \
  "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n\t"   \
  "vpaddd %%ymm12, %%ymm" i ", %%ymm" i "\n\t"
#define FMA(i) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" i "\n\t"
#define SHUFFLE(i) "vpshufb %%ymm" i ", %%ymm14, %%ymm" i "\n\t"

int64_t peak_maddwd(int64_t rounds) {
  alignas(32) int16_t ones[32];
  for (int16_t& one : ones) one = 1;
  alignas(32) int32_t out[8 * 8];
  NIBBLE_PEAK_LOOP(NIBBLE_EACH_8, ymm, "32", MADDWD, "14", "15", rounds, ones, out);
  return peak_sum(out, 8 * 8);
}

int64_t peak_fma(int64_t rounds) {
  alignas(32) float ones[16];
  for (float& one : ones) one = 1;
  alignas(32) float out[12 * 8];
  NIBBLE_PEAK_LOOP(NIBBLE_EACH_12, ymm, "32", FMA, "14", "15", rounds, ones, out);
  return peak_sum(out, 12 * 8);
}

// table[i] = i + 1 modulo 16: an accumulator of indices counts the lookups.
int64_t peak_shuffle(int64_t rounds) {
  alignas(32) int8_t table[64];
  for (int i = 0; i < 64; ++i) table[i] = static_cast<int8_t>((i + 1) % 16);
  alignas(32) int8_t out[12 * 32];
  NIBBLE_PEAK_LOOP(NIBBLE_EACH_12, ymm, "32", SHUFFLE, "14", "15", rounds, table, out);
  return peak_sum(out, 12 * 32);
}

uint64_t read_words(const uint64_t* words, int64_t n, int64_t passes) {
  constexpr int kVectors = 8;
  __m256i acc[kVectors];
  for (__m256i& a : acc) a = _mm256_setzero_si256();
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t i = 0; i < n; i += 4 * kVectors) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        acc[j] = _mm256_add_epi64(
            acc[j],
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + i + 4 * j)));
      }
    }
    __asm__ volatile("" ::: "memory");  // the next pass reads again
  }
  uint64_t sum = 0;
  for (const __m256i& a : acc) {
    alignas(32) uint64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), a);
    for (const uint64_t lane : lanes) sum += lane;
  }
  return sum;
}

}  // namespace nibble::avx2
