#include "kernels/hardware/peak_loop.h"
#include "kernels/hardware/probe_isa.h"

namespace nibble::avxvnni {

// Without {vex} the assembler may take AVX-512's form, which such a CPU may lack.
#define DPBUSD(i) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" i "\n\t"

int64_t peak_dpbusd(int64_t rounds) {
  alignas(32) int8_t ones[64];
  for (int8_t& one : ones) one = 1;
  alignas(32) int32_t out[12 * 8];
  NIBBLE_PEAK_LOOP(NIBBLE_EACH_12, ymm, "32", DPBUSD, "14", "15", rounds, ones, out);
  return peak_sum(out, 12 * 8);
}

}  // namespace nibble::avxvnni
