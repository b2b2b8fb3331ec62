#include "kernels/ops/attention/attention_isa.h"
#include "kernels/ops/panel/avx512vnni.h"

namespace nibble::avx512vnni {
#include "kernels/ops/panel/vector_math.inc"
#include "kernels/ops/attention/attention_vector.inc"

const AttentionIsa attention_isa = {.softmax = softmax};

}  // namespace nibble::avx512vnni
