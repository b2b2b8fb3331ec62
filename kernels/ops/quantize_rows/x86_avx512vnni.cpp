#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/quantize_rows/quantize_rows_isa.h"

namespace nibble::avx512vnni {
#include "kernels/ops/quantize_rows/quantize_rows_vector.inc"
}  // namespace nibble::avx512vnni
