#include "kernels/base/cpu.h"
#include "kernels/ops/panel/avxvnni.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avxvnni {
#include "kernels/ops/panel/panel_vector.inc"

const PanelIsa panel_isa = {
    .name = "avxvnni",
    .flags = kCpuAvx2 | kCpuAvxVnni,
    .lanes = V::kLanes,
    .tile = V::kTile,
    .small_tile = V::kSmallTile,
    .dwords = V::kDwords,
    .tile_f32 = product_f32<V::kTile>,
    .small_f32 = product_f32<V::kSmallTile>,
    .tile_s32 = product_s32<V::kTile>,
    .small_s32 = product_s32<V::kSmallTile>,
    .requantize = requantize,
};

}  // namespace nibble::avxvnni
