// How AMX's tile registers are laid out: what LDTILECFG loads, and the one layout that
// every product of nibble's uses.
//
//   tiles 0 to 3   16 rows of 64 bytes, 16 x 16 results of 4 bytes
//   tiles 4, 5     16 rows of `step` bytes, the left operands
//   tiles 6, 7     step / 4 rows of 64 bytes, the right ones
//
// step is a multiple of 4, at most 64. The system must have granted the registers
// (cpu_info() asks for them). Allocates nothing; safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble {

struct alignas(64) TileConfig {
  uint8_t palette;    // 1: 8 tiles of at most 16 rows of 64 bytes
  uint8_t start_row;  // where an interrupted load goes on: 0
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64 && offsetof(TileConfig, row_bytes) == 16 &&
              offsetof(TileConfig, rows) == 48);

// static: files with flags of several instruction sets include this, and of an inline
// function the linker keeps any one copy.
static inline TileConfig tile_config(int64_t step) {
  TileConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = i == 4 || i == 5 ? static_cast<uint16_t>(step) : 64;
    config.rows[i] = i >= 6 ? static_cast<uint8_t>(step / 4) : 16;
  }
  return config;
}

}  // namespace nibble
