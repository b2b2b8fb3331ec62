#include "kernels/ops/attention/attention_isa.h"
#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avx512vnni {
#include "kernels/ops/attention/attention_vector.inc"

const AttentionIsa attention_isa = {.softmax = softmax,
                                    .softmax_backward = softmax_backward,
                                    .scores = scores,
                                    .weighted_sum = weighted_sum};

}  // namespace nibble::avx512vnni
