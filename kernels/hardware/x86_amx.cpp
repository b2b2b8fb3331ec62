#include "kernels/hardware/probe_isa.h"
#include "kernels/hardware/tile_config.h"

// Inline assembly throughout: GCC 12's _tile_loadconfig does not say that it reads the 64
// bytes, so their stores may vanish. cpu_info() has asked the system for the tile
// registers before anybody gets here (a flag of AMX says that they were granted).
namespace nibble::amx {
namespace {

constexpr int kTiles = 6;  // of results; tile 6 and 7 hold the operands
constexpr int kRows = 16, kRowBytes = 64;

// All eight tiles 16 x 64 bytes, results 0, both operands the 16 x 64 bytes at `operand`.
void begin(const void* operand) {
  const TileConfig config = tile_config(kRowBytes);
  const int64_t stride = kRowBytes;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  __asm__ volatile(
      "tileloadd (%0,%1,1), %%tmm6\n\t"
      "tileloadd (%0,%1,1), %%tmm7\n\t"
      "tilezero %%tmm0\n\t"
      "tilezero %%tmm1\n\t"
      "tilezero %%tmm2\n\t"
      "tilezero %%tmm3\n\t"
      "tilezero %%tmm4\n\t"
      "tilezero %%tmm5" ::"r"(operand),
      "r"(stride)
      : "memory");
}

// results [kTiles, 16, 16] of 4 bytes.
void end(void* results) {
  const int64_t stride = kRowBytes;
  char* out = static_cast<char*>(results);
  __asm__ volatile(
      "tilestored %%tmm0, (%0,%1,1)\n\t"
      "tilestored %%tmm1, 1024(%0,%1,1)\n\t"
      "tilestored %%tmm2, 2048(%0,%1,1)\n\t"
      "tilestored %%tmm3, 3072(%0,%1,1)\n\t"
      "tilestored %%tmm4, 4096(%0,%1,1)\n\t"
      "tilestored %%tmm5, 5120(%0,%1,1)\n\t"
      "tilerelease" ::"r"(out),
      "r"(stride)
      : "memory");
}

}  // namespace

int64_t peak_tile_int8(int64_t rounds) {
  alignas(64) int8_t ones[kRows * kRowBytes];
  for (int8_t& one : ones) one = 1;
  begin(ones);
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile(
        "tdpbssd %%tmm7, %%tmm6, %%tmm0\n\t"
        "tdpbssd %%tmm7, %%tmm6, %%tmm1\n\t"
        "tdpbssd %%tmm7, %%tmm6, %%tmm2\n\t"
        "tdpbssd %%tmm7, %%tmm6, %%tmm3\n\t"
        "tdpbssd %%tmm7, %%tmm6, %%tmm4\n\t"
        "tdpbssd %%tmm7, %%tmm6, %%tmm5" ::
            : "memory");
  }
  alignas(64) int32_t results[kTiles * 256];
  end(results);
  int64_t sum = 0;
  for (const int32_t result : results) sum += result;
  return sum;
}

int64_t peak_tile_bf16(int64_t rounds) {
  alignas(64) uint16_t ones[kRows * kRowBytes / 2];
  for (uint16_t& one : ones) one = 0x3f80;  // bf16 1
  begin(ones);
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile(
        "tdpbf16ps %%tmm7, %%tmm6, %%tmm0\n\t"
        "tdpbf16ps %%tmm7, %%tmm6, %%tmm1\n\t"
        "tdpbf16ps %%tmm7, %%tmm6, %%tmm2\n\t"
        "tdpbf16ps %%tmm7, %%tmm6, %%tmm3\n\t"
        "tdpbf16ps %%tmm7, %%tmm6, %%tmm4\n\t"
        "tdpbf16ps %%tmm7, %%tmm6, %%tmm5" ::
            : "memory");
  }
  alignas(64) float results[kTiles * 256];
  end(results);
  double sum = 0;
  for (const float result : results) sum += result;
  return static_cast<int64_t>(sum);
}

}  // namespace nibble::amx
