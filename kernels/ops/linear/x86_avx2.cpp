#include "kernels/ops/linear/linear_isa.h"
#include "kernels/ops/panel/avx2.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avx2 {
#include "kernels/ops/linear/linear_vector.inc"

const LinearIsa linear_isa = {
    .direct_tokens = 4,
    .direct_f32 = {direct_plain_form<F32Form>, direct_plain_form<Bf16Form>,
                   direct_plain_form<F16Form>, direct_code_form<Int4Step>,
                   direct_code_form<Int8Step>},
    .decode = {decode_plain<F32Form>, decode_plain<Bf16Form>, decode_plain<F16Form>,
               decode_codes<Int4Step>, decode_codes<Int8Step>},
    .unpack_int4 = unpack_int4,
    .tile_s8 = product_s8<V::kTile>,
    .small_s8 = product_s8<V::kSmallTile>,
    .direct_s8_int4 = direct_s8<true>,
    .direct_s8_int8 = direct_s8<false>,
};

}  // namespace nibble::avx2
