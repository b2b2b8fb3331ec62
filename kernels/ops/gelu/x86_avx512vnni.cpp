#include "kernels/ops/gelu/gelu_isa.h"
#include "kernels/ops/panel/avx512vnni.h"

namespace nibble::avx512vnni {
#include "kernels/ops/gelu/gelu_vector.inc"
}  // namespace nibble::avx512vnni
