#include "kernels/hardware/peak_loop.h"
#include "kernels/hardware/probe_isa.h"

namespace nibble::avx512bf16 {

#define DPBF16(i) "vdpbf16ps %%zmm16, %%zmm17, %%zmm" i "\n\t"

int64_t peak_dpbf16(int64_t rounds) {
  alignas(64) uint16_t ones[64];
  for (uint16_t& one : ones) one = 0x3f80;  // bf16 1
  alignas(64) float out[16 * 16];
  NIBBLE_PEAK_LOOP(NIBBLE_EACH_16, zmm, "64", DPBF16, "16", "17", rounds, ones, out, ,
                   "xmm16", "xmm17");
  return peak_sum(out, 16 * 16);
}

}  // namespace nibble::avx512bf16
