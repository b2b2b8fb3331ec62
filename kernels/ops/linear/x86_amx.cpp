#include "kernels/hardware/tile_config.h"
#include "kernels/ops/linear/linear_tiles.h"
#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::amx {
namespace {

using V = avx512vnni::V;  // inlined; what it uses this file's flags have

// One instruction each; volatile keeps them in order, as a compiler does not know that
// one follows another through tiles. Assembly for the reason that hardware/x86_amx.cpp
// gives.
struct T {
  static void configure(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }
  static void release() { __asm__ volatile("tilerelease"); }
  template <int D>
  static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(D));
  }
  template <int D>
  static void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(D)
                     : "memory");
  }
  template <int D, int A, int B>
  static void dot_s8() {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(D), "i"(A), "i"(B));
  }
  template <int D, int A, int B>
  static void dot_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(D), "i"(A), "i"(B));
  }
  template <int D>
  static void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(D)
                     : "memory");
  }
};

}  // namespace

#include "kernels/ops/linear/linear_tiles.inc"

const LinearTileIsa linear_tile_isa = kTileIsa;

}  // namespace nibble::amx
