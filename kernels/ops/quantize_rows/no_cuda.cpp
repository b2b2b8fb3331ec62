#include "kernels/ops/quantize_rows/cuda_quantize_rows.h"

namespace nibble::cuda {

Status run_quantize_rows(const QuantizeRowsCall&, void*) {
  return error(StatusCode::unsupported,
               "[quantize_rows] this build has no CUDA; build the preset `cuda`");
}

Status run_store_kv(const StoreKvCall&, void*) {
  return error(StatusCode::unsupported,
               "[kv] this build has no CUDA; build the preset `cuda`");
}

}  // namespace nibble::cuda
