#include "kernels/ops/kv_attention/kv_decode.h"
#include "kernels/ops/panel/avx2.h"

namespace nibble::avx2 {
#include "kernels/ops/kv_attention/kv_decode_vector.inc"

const KvDecodeIsa kv_decode_isa = {.decode = decode};

}  // namespace nibble::avx2
