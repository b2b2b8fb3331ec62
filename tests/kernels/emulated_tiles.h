// AMX's tile registers in memory, and linear_tiles.h's products over them.
//
// Each thread has eight. What the CPU would fault at, and a configuration made while
// another is in use, is a TileFault that names the broken rule. For CPUs with AVX-512.
#pragma once

#include <cstdint>
#include <exception>

#include "kernels/hardware/tile_config.h"
#include "kernels/ops/linear/linear_tiles.h"

namespace nibble::emulated {

extern const LinearTileIsa linear_tile_isa;

class TileFault : public std::exception {
 public:
  explicit TileFault(const char* rule);
  const char* what() const noexcept override;

 private:
  const char* rule_;
};

void configure(const TileConfig& config);               // LDTILECFG
void release();                                         // TILERELEASE
void zero(int tile);                                    // TILEZERO
void load(int tile, const void* from, int64_t stride);  // TILELOADD
void store(int tile, void* to, int64_t stride);         // TILESTORED
void dot_s8(int to, int a, int b);                      // TDPBSUD: a signed, b unsigned
void dot_bf16(int to, int a, int b);                    // TDPBF16PS

int64_t dot_count();  // products of tiles so far, by all threads

}  // namespace nibble::emulated
