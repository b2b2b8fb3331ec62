#include "kernels/ops/gelu/gelu_isa.h"
#include "kernels/ops/panel/avx2.h"

namespace nibble::avx2 {
#include "kernels/ops/gelu/gelu_vector.inc"
}  // namespace nibble::avx2
