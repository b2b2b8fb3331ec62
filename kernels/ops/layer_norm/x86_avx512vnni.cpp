#include "kernels/ops/layer_norm/layer_norm_isa.h"
#include "kernels/ops/panel/avx512vnni.h"

namespace nibble::avx512vnni {
#include "kernels/ops/layer_norm/layer_norm_vector.inc"
}  // namespace nibble::avx512vnni
