// What an instruction set gives the probe: one loop an instruction, and a reader.
//
//   peak_*    `rounds` rounds of the instruction over independent accumulators; what an
//             accumulator gains in a round is chosen so that the returned sum over all
//             lanes is rounds * operations / weight (peaks.inc): proof of the work done.
//             Exact for rounds < 16 (lookups), < 2^18 (float)
//   read_*    the sum of `words` 64-bit words, modulo 2^64, `passes` times over;
//             words % 64 = 0
//
// Plain functions, nothing of std; safe from any thread. The caller checks the CPU.
#pragma once

#include <cstdint>

namespace nibble {

uint64_t read_words(const uint64_t* words, int64_t n, int64_t passes);

namespace avx2 {
int64_t peak_maddwd(int64_t rounds);
int64_t peak_fma(int64_t rounds);
int64_t peak_shuffle(int64_t rounds);
uint64_t read_words(const uint64_t* words, int64_t n, int64_t passes);
}  // namespace avx2
namespace avxvnni {
int64_t peak_dpbusd(int64_t rounds);
}
namespace avx512vnni {
int64_t peak_dpbusd_zmm(int64_t rounds);
int64_t peak_dpbusd_ymm(int64_t rounds);
int64_t peak_fma(int64_t rounds);
int64_t peak_permute_words(int64_t rounds);
int64_t peak_permute_floats(int64_t rounds);
uint64_t read_words(const uint64_t* words, int64_t n, int64_t passes);
}  // namespace avx512vnni
namespace avx512bf16 {
int64_t peak_dpbf16(int64_t rounds);
}
namespace amx {
int64_t peak_tile_int8(int64_t rounds);
int64_t peak_tile_bf16(int64_t rounds);
}  // namespace amx

}  // namespace nibble
