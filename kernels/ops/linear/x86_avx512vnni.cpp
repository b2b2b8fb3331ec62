#include "kernels/ops/linear/linear_isa.h"
#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avx512vnni {
#include "kernels/ops/linear/linear_vector.inc"
#include "kernels/ops/linear/linear_digits.inc"

const LinearIsa linear_isa = with_digits(kVectorIsa, 3);

}  // namespace nibble::avx512vnni
