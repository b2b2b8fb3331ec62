#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/rms_norm/rms_norm_isa.h"

namespace nibble::avx512vnni {
#include "kernels/ops/rms_norm/rms_norm_vector.inc"
}  // namespace nibble::avx512vnni
