#include "kernels/ops/layer_norm/layer_norm_isa.h"
#include "kernels/ops/panel/avx2.h"

namespace nibble::avx2 {
#include "kernels/ops/layer_norm/layer_norm_vector.inc"
}  // namespace nibble::avx2
