#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/silu_mul/silu_mul_isa.h"

namespace nibble::avx512vnni {
#include "kernels/ops/silu_mul/silu_mul_vector.inc"
}  // namespace nibble::avx512vnni
