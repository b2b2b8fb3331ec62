#include "kernels/ops/linear/linear_tiles.h"
#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::amx {
namespace {

using V = avx512vnni::V;  // inlined; what it uses this file's flags have

// Assembly for the reason that hardware/x86_amx.cpp gives: GCC 12 may drop the stores of
// a configuration, and does not know that one instruction follows another through tiles.
struct T {
  static void begin(int64_t step) {
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof(config) == 64);
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = i == 4 || i == 5 ? static_cast<uint16_t>(step) : 64;
      config.rows[i] = i >= 6 ? static_cast<uint8_t>(step / 4) : 16;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }
  static void zero() {
    __asm__ volatile(
        "tilezero %%tmm0\n\t"
        "tilezero %%tmm1\n\t"
        "tilezero %%tmm2\n\t"
        "tilezero %%tmm3" ::
            :);
  }
  static void end() { __asm__ volatile("tilerelease" ::: "memory"); }
  template <int A>
  static void load(const void* x0, const void* x1, const void* u, int64_t step) {
    const int64_t pair = 128;
    __asm__ volatile(
        "tileloadd (%0,%1,1), %%tmm4\n\t"
        "tileloadd (%2,%3,1), %%tmm6\n\t"
        "tileloadd 64(%2,%3,1), %%tmm7" ::"r"(x0),
        "r"(step), "r"(u), "r"(pair)
        : "memory");
    if constexpr (A == 2)
      __asm__ volatile("tileloadd (%0,%1,1), %%tmm5" ::"r"(x1), "r"(step) : "memory");
  }
  template <int A>
  static void dot_s8() {
    __asm__ volatile(
        "tdpbsud %%tmm6, %%tmm4, %%tmm0\n\t"
        "tdpbsud %%tmm7, %%tmm4, %%tmm1" ::
            :);
    if constexpr (A == 2) {
      __asm__ volatile(
          "tdpbsud %%tmm6, %%tmm5, %%tmm2\n\t"
          "tdpbsud %%tmm7, %%tmm5, %%tmm3" ::
              :);
    }
  }
  template <int A>
  static void dot_bf16() {
    __asm__ volatile(
        "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n\t"
        "tdpbf16ps %%tmm7, %%tmm4, %%tmm1" ::
            :);
    if constexpr (A == 2) {
      __asm__ volatile(
          "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n\t"
          "tdpbf16ps %%tmm7, %%tmm5, %%tmm3" ::
              :);
    }
  }
  template <int A>
  static void store(void* out) {
    const int64_t pair = 128;
    __asm__ volatile(
        "tilestored %%tmm0, (%0,%1,1)\n\t"
        "tilestored %%tmm1, 64(%0,%1,1)" ::"r"(out),
        "r"(pair)
        : "memory");
    if constexpr (A == 2) {
      __asm__ volatile(
          "tilestored %%tmm2, 2048(%0,%1,1)\n\t"
          "tilestored %%tmm3, 2112(%0,%1,1)" ::"r"(out),
          "r"(pair)
          : "memory");
    }
  }
};

}  // namespace

#include "kernels/ops/linear/linear_tiles.inc"

const LinearTileIsa linear_tile_isa = kTileIsa;

}  // namespace nibble::amx
