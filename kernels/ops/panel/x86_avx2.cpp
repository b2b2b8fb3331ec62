#include "kernels/base/cpu.h"
#include "kernels/ops/panel/avx2.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avx2 {
#include "kernels/ops/panel/panel_vector.inc"

const PanelIsa panel_isa = {
    .name = "avx2",
    .flags = kCpuAvx2,
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

}  // namespace nibble::avx2
