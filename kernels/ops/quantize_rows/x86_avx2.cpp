#include "kernels/ops/panel/avx2.h"
#include "kernels/ops/quantize_rows/quantize_rows_isa.h"

namespace nibble::avx2 {
#include "kernels/ops/quantize_rows/quantize_rows_vector.inc"
}  // namespace nibble::avx2
