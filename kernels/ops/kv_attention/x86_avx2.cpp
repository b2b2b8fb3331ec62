#include "kernels/ops/kv_attention/kv_decode.h"
#include "kernels/ops/panel/avx2.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avx2 {
#include "kernels/ops/kv_attention/kv_decode_vector.inc"

const KvDecodeIsa kv_decode_isa = {.decode = decode,
                                   .lanes = V::kLanes,
                                   .direct_heads = kHeads,
                                   .scores = code_scores,
                                   .weighted_sum = code_weighted_sum,
                                   .digits = nullptr};

}  // namespace nibble::avx2
