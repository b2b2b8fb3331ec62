// The tile products of ops/linear (linear_tiles.inc) over tile registers in memory: what
// AMX's instructions do, for CPUs that have AVX-512 alone. The arithmetic and the way
// through memory are the kernels' own; only T is another.
#include <cstring>

#include "emulated_tiles.h"
#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::emulated {
namespace {

using V = avx512vnni::V;

// As Intel's manual has the registers: 16 rows of 64 bytes, and how much of each counts.
struct Tile {
  int64_t rows = 0, bytes = 0;
  alignas(64) uint8_t data[16][64] = {};
};

struct T {
  static thread_local Tile tiles[8];
  static thread_local bool configured;

  static void begin(int64_t step) {
    for (int i = 0; i < 8; ++i) {
      tiles[i] = Tile();
      tiles[i].rows = i >= 6 ? step / 4 : 16;
      tiles[i].bytes = i == 4 || i == 5 ? step : 64;
    }
    configured = true;
  }
  static void end() { configured = false; }
  static void zero() {
    for (int i = 0; i < 4; ++i) std::memset(tiles[i].data, 0, sizeof(tiles[i].data));
  }
  static void load_one(int i, const void* from, int64_t stride) {
    if (!configured) __builtin_trap();  // as the CPU does
    std::memset(tiles[i].data, 0, sizeof(tiles[i].data));
    for (int64_t r = 0; r < tiles[i].rows; ++r) {
      std::memcpy(tiles[i].data[r], static_cast<const uint8_t*>(from) + r * stride,
                  static_cast<size_t>(tiles[i].bytes));
    }
  }
  template <int A>
  static void load(const void* x0, const void* x1, const void* u, int64_t step) {
    load_one(4, x0, step);
    if (A == 2) load_one(5, x1, step);
    load_one(6, u, 128);
    load_one(7, static_cast<const uint8_t*>(u) + 64, 128);
  }
  // TDPBSUD: of each dword of 4 bytes, signed ones of a by unsigned ones of b.
  static void s8(Tile& to, const Tile& a, const Tile& b) {
    for (int64_t m = 0; m < a.rows; ++m) {
      for (int64_t n = 0; n < 16; ++n) {
        int32_t sum;
        std::memcpy(&sum, to.data[m] + 4 * n, 4);
        for (int64_t k = 0; k < a.bytes; ++k) {
          sum += static_cast<int8_t>(a.data[m][k]) * b.data[k / 4][4 * n + k % 4];
        }
        std::memcpy(to.data[m] + 4 * n, &sum, 4);
      }
    }
  }
  // TDPBF16PS: a pair of bf16 a dword, f32 sums, the even one first.
  static void bf16(Tile& to, const Tile& a, const Tile& b) {
    const auto value = [](const uint8_t* p) {
      uint16_t half;
      std::memcpy(&half, p, 2);
      const uint32_t bits = static_cast<uint32_t>(half) << 16;
      float x;
      std::memcpy(&x, &bits, 4);
      return x;
    };
    for (int64_t m = 0; m < a.rows; ++m) {
      for (int64_t n = 0; n < 16; ++n) {
        float sum;
        std::memcpy(&sum, to.data[m] + 4 * n, 4);
        for (int64_t k = 0; k < a.bytes / 2; ++k) {
          sum += value(a.data[m] + 2 * k) * value(b.data[k / 2] + 4 * n + k % 2 * 2);
        }
        std::memcpy(to.data[m] + 4 * n, &sum, 4);
      }
    }
  }
  template <int A>
  static void dot_s8() {
    for (int i = 0; i < 2 * A; ++i) s8(tiles[i], tiles[4 + i / 2], tiles[6 + i % 2]);
  }
  template <int A>
  static void dot_bf16() {
    for (int i = 0; i < 2 * A; ++i) bf16(tiles[i], tiles[4 + i / 2], tiles[6 + i % 2]);
  }
  template <int A>
  static void store(void* out) {
    for (int i = 0; i < 2 * A; ++i) {
      for (int64_t m = 0; m < 16; ++m) {
        std::memcpy(static_cast<uint8_t*>(out) + (i / 2 * 16 + m) * 128 + i % 2 * 64,
                    tiles[i].data[m], 64);
      }
    }
  }
};
thread_local Tile T::tiles[8];
thread_local bool T::configured = false;

}  // namespace

#include "kernels/ops/linear/linear_tiles.inc"

const LinearTileIsa linear_tile_isa = kTileIsa;

}  // namespace nibble::emulated
