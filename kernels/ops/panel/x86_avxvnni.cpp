#include "kernels/base/cpu.h"
#include "kernels/ops/panel/avxvnni.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avxvnni {
#include "kernels/ops/panel/panel_vector.inc"

const PanelIsa panel_isa = panel_isa_of("avxvnni", kCpuAvx2 | kCpuAvxVnni);

}  // namespace nibble::avxvnni
