#include "kernels/ops/linear/linear_isa.h"
#include "kernels/ops/panel/avxvnni.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avxvnni {
#include "kernels/ops/linear/linear_vector.inc"
// The digits use what that defines.
#include "kernels/ops/linear/linear_digits.inc"

const LinearIsa linear_isa = with_digits(kVectorIsa, 1);

}  // namespace nibble::avxvnni
