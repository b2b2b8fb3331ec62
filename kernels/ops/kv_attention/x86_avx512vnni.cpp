#include "kernels/ops/kv_attention/kv_decode.h"
#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avx512vnni {
#include "kernels/ops/kv_attention/kv_decode_vector.inc"
#include "kernels/ops/kv_attention/kv_digits_avx512.inc"

namespace {
const KvDigitsIsa digits_isa = {.make_digits = make_digits,
                                .scores = digit_scores,
                                .weighted_sum = digit_weighted_sum};
}  // namespace

const KvDecodeIsa kv_decode_isa = {.decode = decode,
                                   .lanes = V::kLanes,
                                   .direct_heads = kHeads,
                                   .scores = code_scores,
                                   .weighted_sum = code_weighted_sum,
                                   .digits = &digits_isa};

}  // namespace nibble::avx512vnni
