#include "kernels/ops/panel/avx2.h"
#include "kernels/ops/silu_mul/silu_mul_isa.h"

namespace nibble::avx2 {
#include "kernels/ops/silu_mul/silu_mul_vector.inc"
}  // namespace nibble::avx2
