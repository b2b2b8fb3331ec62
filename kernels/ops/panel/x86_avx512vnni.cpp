#include "kernels/base/cpu.h"
#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avx512vnni {
#include "kernels/ops/panel/panel_vector.inc"

const PanelIsa panel_isa =
    panel_isa_of("avx512vnni", kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni);

}  // namespace nibble::avx512vnni
