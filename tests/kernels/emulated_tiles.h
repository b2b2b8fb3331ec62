// linear_tiles.h's products over tile registers in memory.
#pragma once

#include "kernels/ops/linear/linear_tiles.h"

namespace nibble::emulated {
extern const LinearTileIsa linear_tile_isa;
}
