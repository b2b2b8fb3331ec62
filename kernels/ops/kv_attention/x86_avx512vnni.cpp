#include "kernels/ops/kv_attention/kv_decode.h"
#include "kernels/ops/panel/avx512vnni.h"

namespace nibble::avx512vnni {
#include "kernels/ops/kv_attention/kv_decode_vector.inc"

const KvDecodeIsa kv_decode_isa = {.decode = decode};

}  // namespace nibble::avx512vnni
