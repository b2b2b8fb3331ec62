#include "kernels/ops/linear/linear_isa.h"
#include "kernels/ops/panel/avx2.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avx2 {
#include "kernels/ops/linear/linear_vector.inc"

const LinearIsa linear_isa = {
    .direct_tokens = 4,
    .direct_f32 = {direct_plain_form<F32Form>, direct_plain_form<Bf16Form>,
                   direct_plain_form<F16Form>, direct_int4, direct_code_form<Table4Step>,
                   direct_int8, direct_code_form<Fp8Step<true>>,
                   direct_code_form<Fp8Step<false>>},
    .digit_tokens = 0,
    .largest_of = nullptr,
    .make_digits = nullptr,
    .digits_int4 = nullptr,
    .digits_int8 = nullptr,
    .decode = {decode_plain<F32Form>, decode_plain<Bf16Form>, decode_plain<F16Form>,
               decode_int4, decode_codes<Table4Step>, decode_int8,
               decode_codes<Fp8Step<true>>, decode_codes<Fp8Step<false>>},
    .unpack_int4 = unpack_int4,
    .tile_s8 = product_s8<V::kTile>,
    .small_s8 = product_s8<V::kSmallTile>,
    .store_s8 = store_s8,
    .finish_s8 = finish_s8,
    .direct_s8_tokens = V::kDirectS8,
    .direct_s8_int4 = direct_s8<true>,
    .direct_s8_int8 = direct_s8<false>,
};

}  // namespace nibble::avx2
