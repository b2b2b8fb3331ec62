#include "kernels/ops/panel/avx2.h"
#include "kernels/ops/rms_norm/rms_norm_isa.h"

namespace nibble::avx2 {
#include "kernels/ops/rms_norm/rms_norm_vector.inc"
}  // namespace nibble::avx2
