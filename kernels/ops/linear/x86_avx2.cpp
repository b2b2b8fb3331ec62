#include "kernels/ops/linear/linear_isa.h"
#include "kernels/ops/panel/avx2.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avx2 {
#include "kernels/ops/linear/linear_vector.inc"

const LinearIsa linear_isa = kVectorIsa;

}  // namespace nibble::avx2
