// The loop of a peak, written out in assembly: a compiler may neither hoist, fold nor
// drop an instruction, nor move an accumulator to memory, at any optimisation level.
//
//   acc[i] = 0;  rounds times: instruction(i) for every i;  out[i] = acc[i]
//
//   each         NIBBLE_EACH_8, _12 or _16: how many accumulators, registers 0 and up
//   vector       "ymm" or "zmm", `width` its bytes
//   instruction  a macro from an accumulator's number ("3") to its text
//   first, second  numbers of the registers that hold operands[0] and operands[1]
//   rounds       int64_t > 0;  operands: two vectors;  out: one vector an accumulator
//
// Included by x86_*.cpp files only.
#pragma once

#include <cstdint>

#define NIBBLE_EACH_8(op) op("0") op("1") op("2") op("3") op("4") op("5") op("6") op("7")
#define NIBBLE_EACH_12(op) NIBBLE_EACH_8(op) op("8") op("9") op("10") op("11")
#define NIBBLE_EACH_16(op) NIBBLE_EACH_12(op) op("12") op("13") op("14") op("15")

#define NIBBLE_PEAK_ZERO(i) "vpxor %%xmm" i ", %%xmm" i ", %%xmm" i "\n\t"
#define NIBBLE_PEAK_STORE_ymm(i) "vmovups %%ymm" i ", 32*" i "(%2)\n\t"
#define NIBBLE_PEAK_STORE_zmm(i) "vmovups %%zmm" i ", 64*" i "(%2)\n\t"

// clang-format off: it cuts the instructions' names in two.
#define NIBBLE_PEAK_LOOP(each, vector, width, instruction, first, second, rounds,        \
                         operands, out, ...)                                             \
  __asm__ volatile("vmovups (%1), %%" #vector first "\n\t"                               \
                   "vmovups " width "(%1), %%" #vector second "\n\t"                     \
                   each(NIBBLE_PEAK_ZERO)                                                \
                   "1:\n\t"                                                              \
                   each(instruction)                                                     \
                   "dec %0\n\t"                                                          \
                   "jnz 1b\n\t"                                                          \
                   each(NIBBLE_PEAK_STORE_##vector)                                      \
                   "vzeroupper"                                                          \
                   : "+r"(rounds)                                                        \
                   : "r"(operands), "r"(out)                                             \
                   : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",     \
                     "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
                     "xmm14", "xmm15" __VA_ARGS__)
// clang-format on

namespace nibble {

// The sum of n lanes.
template <class Lane>
static inline int64_t peak_sum(const Lane* lanes, int n) {
  int64_t sum = 0;
  for (int i = 0; i < n; ++i) sum += static_cast<int64_t>(lanes[i]);
  return sum;
}

}  // namespace nibble
