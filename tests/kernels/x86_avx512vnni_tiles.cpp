// The tile products of ops/linear (linear_tiles.inc) over tile registers in memory: what
// AMX's instructions do, for CPUs that have AVX-512 alone. The arithmetic, the layout of
// the registers and every operand are the kernels' own; only T is another.
#include <cstring>

#include "emulated_tiles.h"
#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::emulated {
namespace {

using V = avx512vnni::V;

constexpr int kTiles = 8;
constexpr int kMostRows = 16, kMostBytes = 64;  // of palette 1

struct Tile {
  int rows = 0, bytes = 0;
  alignas(64) uint8_t data[kMostRows][kMostBytes] = {};
};
thread_local Tile tiles[kTiles];
thread_local bool configured = false;
int64_t dots = 0;

void require(bool holds, const char* rule) {
  if (!holds) throw TileFault(rule);
}

Tile& used(int tile) {
  require(configured, "tiles are used between ldtilecfg and tilerelease");
  require(tile >= 0 && tile < kTiles, "there are eight tiles");
  require(tiles[tile].rows != 0, "a tile that is used has rows in the configuration");
  return tiles[tile];
}

// A [M, K] by B [K, N] into C [M, N], of 4 bytes an element.
void check_product(int to, int a, int b) {
  require(to != a && to != b && a != b, "a product takes three different tiles");
  require(used(to).rows == used(a).rows,
          "a product has as many rows as its left operand");
  require(used(to).bytes == used(b).bytes, "a product is as wide as its right operand");
  require(used(a).bytes == 4 * used(b).rows,
          "a dword of the left operand's rows meets a row of the right one");
  __atomic_fetch_add(&dots, 1, __ATOMIC_RELAXED);
}

float from_bf16(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, sizeof(half));
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// As Intel's manual has it: the sums of the pairs' first and second halves apart, then
// together, then to C. Not inlined, so that it stays between changes of the rounding.
__attribute__((noinline)) void sum_bf16(Tile& c, const Tile& a, const Tile& b) {
  const int columns = c.bytes / 4;
  float right[kMostRows][2 * 16];
  for (int k = 0; k < b.rows; ++k) {
    for (int n = 0; n < 2 * columns; ++n) right[k][n] = from_bf16(b.data[k] + 2 * n);
  }
  for (int m = 0; m < c.rows; ++m) {
    float sums[2 * 16] = {};
    for (int k = 0; k < b.rows; ++k) {
      const float left[2] = {from_bf16(a.data[m] + 4 * k),
                             from_bf16(a.data[m] + 4 * k + 2)};
      for (int n = 0; n < 2 * columns; ++n) {
        sums[n] = __builtin_fmaf(left[n % 2], right[k][n], sums[n]);
      }
    }
    float row[16];
    std::memcpy(row, c.data[m], static_cast<size_t>(c.bytes));
    for (int n = 0; n < columns; ++n) row[n] += sums[2 * n] + sums[2 * n + 1];
    std::memcpy(c.data[m], row, static_cast<size_t>(c.bytes));
  }
}

}  // namespace

TileFault::TileFault(const char* rule) : rule_(rule) {}
const char* TileFault::what() const noexcept { return rule_; }

int64_t dot_count() { return __atomic_load_n(&dots, __ATOMIC_RELAXED); }

void configure(const TileConfig& config) {
  require(!configured, "a thread gives its tiles back before it configures them again");
  require(config.palette == 1, "the palette is 1");
  require(config.start_row == 0, "loads start at row 0");
  for (const uint8_t byte : config.reserved) {
    require(byte == 0, "reserved bytes of a configuration are 0");
  }
  for (int i = 0; i < 16; ++i) {
    const int rows = config.rows[i], bytes = config.row_bytes[i];
    require(i < kTiles || (rows == 0 && bytes == 0), "there are eight tiles");
    require(rows <= kMostRows, "a tile has at most 16 rows");
    require(bytes <= kMostBytes, "a tile's rows have at most 64 bytes");
    require((rows == 0) == (bytes == 0), "a tile has both rows and bytes, or neither");
    // The CPU finds this in the first product only.
    require(bytes % 4 == 0, "a tile's rows are whole dwords");
    if (i >= kTiles) continue;
    tiles[i] = Tile();
    tiles[i].rows = rows;
    tiles[i].bytes = bytes;
  }
  configured = true;
}

void release() { configured = false; }

void zero(int tile) {
  Tile& to = used(tile);
  std::memset(to.data, 0, sizeof(to.data));
}

void load(int tile, const void* from, int64_t stride) {
  Tile& to = used(tile);
  std::memset(to.data, 0, sizeof(to.data));
  for (int r = 0; r < to.rows; ++r) {
    std::memcpy(to.data[r], static_cast<const uint8_t*>(from) + r * stride,
                static_cast<size_t>(to.bytes));
  }
}

void store(int tile, void* to, int64_t stride) {
  const Tile& from = used(tile);
  for (int r = 0; r < from.rows; ++r) {
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, from.data[r],
                static_cast<size_t>(from.bytes));
  }
}

void dot_s8(int to, int a, int b) {
  check_product(to, a, b);
  const Tile &left = tiles[a], &right = tiles[b];
  Tile& c = tiles[to];
  for (int m = 0; m < c.rows; ++m) {
    int32_t row[16];
    std::memcpy(row, c.data[m], static_cast<size_t>(c.bytes));
    for (int k = 0; k < left.bytes; ++k) {
      const int32_t code = static_cast<int8_t>(left.data[m][k]);
      const uint8_t* other = right.data[k / 4] + k % 4;
      for (int n = 0; n < c.bytes / 4; ++n) row[n] += code * other[4 * n];
    }
    std::memcpy(c.data[m], row, static_cast<size_t>(c.bytes));
  }
}

// Whatever the thread's own, this rounds to even, takes numbers below 2^-126 as 0 and
// gives 0 for them.
void dot_bf16(int to, int a, int b) {
  check_product(to, a, b);
  constexpr uint32_t kNoTraps = 0x1f80, kFlushInputs = 1u << 6, kFlushResults = 1u << 15;
  const uint32_t before = _mm_getcsr();
  _mm_setcsr(kNoTraps | kFlushInputs | kFlushResults);
  sum_bf16(tiles[to], tiles[a], tiles[b]);
  _mm_setcsr(before);
}

namespace {

struct T {
  static void configure(const TileConfig& config) { emulated::configure(config); }
  static void release() { emulated::release(); }
  template <int D>
  static void zero() {
    emulated::zero(D);
  }
  template <int D>
  static void load(const void* from, int64_t stride) {
    emulated::load(D, from, stride);
  }
  template <int D, int A, int B>
  static void dot_s8() {
    emulated::dot_s8(D, A, B);
  }
  template <int D, int A, int B>
  static void dot_bf16() {
    emulated::dot_bf16(D, A, B);
  }
  template <int D>
  static void store(void* to, int64_t stride) {
    emulated::store(D, to, stride);
  }
};

}  // namespace

#include "kernels/ops/linear/linear_tiles.inc"

const LinearTileIsa linear_tile_isa = kTileIsa;

}  // namespace nibble::emulated
