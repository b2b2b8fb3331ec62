#include "kernels/base/cpu.h"
#include "kernels/ops/panel/avx2.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avx2 {
#include "kernels/ops/panel/panel_vector.inc"

const PanelIsa panel_isa = panel_isa_of("avx2", kCpuAvx2);

}  // namespace nibble::avx2
