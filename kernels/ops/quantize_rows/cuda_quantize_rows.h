// Activations to codes on a GPU: int8 rows for W8A8, and the rows of a coded KV cache.
//
// run_quantize_rows: quantize_rows.h's codes and scales, bit for bit; or e4m3 codes under
// max |x| / 448 (1 for a row of zeros), as e4m3/r@f32 has them, or under one scale that
// is given, as static e4m3/t@f32 does.
//   x  [tokens, K] f16 or bf16   codes  [tokens, stride]   scales  [tokens] f32
//   numbers  [tokens, numbers_stride], or null: what e4m3 codes are, in x's type, exactly
//
// run_store_kv: what KvRows stores under f16, int8n/gH@f16 and e4m3/gH@f16, bit for bit,
// of keys and values at once.
//   x  [tokens, kv_heads * head_dim] f16 or bf16, finite
//   scale  f16(max |x| of the head / 127 or 448), at least 2^-24; 1 for a head of zeros
//   codes  [.., kv_heads * head_dim], scales  [.., kv_heads] f16: rows positions[t]
// A head whose scale f16 does not hold gets the largest that it does. form f16: codes are
// f16, there are no scales.
//
// No CUDA header; cuda.cu or no_cuda.cpp (unsupported). Pointers are device memory.
#pragma once

#include "kernels/base/status.h"
#include "kernels/cuda/device.h"
#include "kernels/ops/kv_attention/cuda_kv_attention.h"

namespace nibble::cuda {

struct QuantizeRowsCall {
  Float16 input = Float16::f16;
  const void* x = nullptr;
  int64_t x_stride = 0;  // elements
  bool fp8 = false;      // e4m3, else int8
  void* codes = nullptr;
  int64_t stride = 0;
  float* scales = nullptr;
  float scale = 0;  // of all rows; 0: each has its own
  void* numbers = nullptr;
  int64_t numbers_stride = 0;
  int tokens = 0, cols = 0;
};
Status run_quantize_rows(const QuantizeRowsCall& call, void* stream);

struct StoreKvCall {
  struct Rows {
    const void* x = nullptr;
    int64_t x_stride = 0;  // elements
    void* codes = nullptr;
    uint16_t* scales = nullptr;
  };
  Float16 input = Float16::f16;
  KvForm form = KvForm::int8;
  Rows keys, values;
  const int32_t* positions = nullptr;  // [tokens]
  int tokens = 0, kv_heads = 0, head_dim = 0;
};
Status run_store_kv(const StoreKvCall& call, void* stream);

}  // namespace nibble::cuda
