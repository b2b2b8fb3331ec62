// The CUDA kernels of quantize_rows and their dispatch, for the GPU and for the emulator
// alike.
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/quantize_rows/cuda_quantize_rows.h"

namespace nibble::cuda {

// float_types.h's e4m3_from_float of a finite number.
NIBBLE_DEVICE uint32_t e4m3_of(float x) {
  const uint32_t u = word_of_float(x);
  const uint32_t sign = u >> 24 & 0x80;
  uint32_t a = u & 0x7fffffff;
  if (a > 0x43e80000u) return sign | 0x7e;
  if (a < 0x3c800000u) {  // below 2^-6: 2^14 has ulp 2^-9
    return sign | (word_of_float(as_float(a) + 16384.0f) - word_of_float(16384.0f));
  }
  a -= 120u << 23;
  a += 0x7ffff + (a >> 20 & 1);
  return sign | a >> 20;
}
NIBBLE_DEVICE float number_of_e4m3(uint32_t code) {
  const uint32_t a = code & 0x7f;
  const float number = a < 8 ? static_cast<float>(a) * 0.001953125f  // 2^-9
                             : as_float((a << 20) + (120u << 23));
  return (code & 0x80) != 0 ? -number : number;
}
NIBBLE_DEVICE int int8_of(float x) {
  return static_cast<int>(smaller(larger(nearest_integer(x), -127.0f), 127.0f));
}

template <Float16 kInput>
struct QuantizeRows {
  using Params = QuantizeRowsCall;
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 4;
  static constexpr int kSharedBytes = kThreads / 32 * 4;

  NIBBLE_DEVICE static void run(const Params& p) {
    const uint16_t* const row =
        static_cast<const uint16_t*>(p.x) + block_x() * p.x_stride;
    const float scale = p.scale > 0 ? p.scale : scale_of(p, row);
    if (thread_index() == 0) p.scales[block_x()] = scale;
    for (int c = thread_index(); c < p.cols; c += kThreads) {
      const float x = quotient(low_float<kInput>(row[c]), scale);
      const uint32_t code = p.fp8 ? e4m3_of(x) : static_cast<uint32_t>(int8_of(x));
      static_cast<uint8_t*>(p.codes)[block_x() * p.stride + c] =
          static_cast<uint8_t>(code);
      if (p.numbers != nullptr) {
        store_output(p.numbers, block_x() * p.numbers_stride + c,
                     kInput == Float16::f16 ? Output::f16 : Output::bf16,
                     number_of_e4m3(code));
      }
    }
  }

  NIBBLE_DEVICE static float scale_of(const Params& p, const uint16_t* row) {
    float* const most = reinterpret_cast<float*>(shared_memory());
    float highest = 0;
    for (int c = thread_index(); c < p.cols; c += kThreads) {
      highest = larger(highest, magnitude(low_float<kInput>(row[c])));
    }
    highest = warp_max(highest);
    if (thread_index() % 32 == 0) most[thread_index() / 32] = highest;
    sync_threads();
    for (int w = 0; w < kThreads / 32; ++w) highest = larger(highest, most[w]);
    const float scale = quotient(highest, p.fp8 ? 448.0f : 127.0f);
    return scale > 0 ? scale : 1;
  }
};

// A warp a head of a token's keys or values.
template <Float16 kInput>
struct StoreKv {
  using Params = StoreKvCall;
  static constexpr int kThreads = 128, kBlocksPerMultiprocessor = 8;

  NIBBLE_DEVICE static void run(const Params& p) {
    const int lane = thread_index() % 32;
    const int head = block_y() * (kThreads / 32) + thread_index() / 32;
    if (head >= p.kv_heads) return;  // a whole warp
    const StoreKvCall::Rows& rows = block_z() == 0 ? p.keys : p.values;
    const uint16_t* const row = static_cast<const uint16_t*>(rows.x) +
                                block_x() * rows.x_stride +
                                static_cast<int64_t>(head) * p.head_dim;
    const int64_t at = static_cast<int64_t>(p.positions[block_x()]) * p.kv_heads + head;
    if (p.form == KvForm::f16) {
      uint16_t* const out = static_cast<uint16_t*>(rows.codes) + at * p.head_dim;
      for (int d = lane; d < p.head_dim; d += 32)
        out[d] = float_to_f16(low_float<kInput>(row[d]));
      return;
    }
    const bool fp8 = p.form == KvForm::e4m3;
    float highest = 0;
    for (int d = lane; d < p.head_dim; d += 32) {
      highest = larger(highest, magnitude(low_float<kInput>(row[d])));
    }
    highest = warp_max(highest);
    const float wanted = quotient(highest, fp8 ? 448.0f : 127.0f);
    uint32_t half = float_to_f16(wanted);
    if (half == 0) half = 1;            // 2^-24
    if (half > 0x7bff) half = 0x7bff;   // 65504
    if (!(highest > 0)) half = 0x3c00;  // 1
    const float scale = f16_to_float(half);
    if (lane == 0) rows.scales[at] = static_cast<uint16_t>(half);
    uint8_t* const out = static_cast<uint8_t*>(rows.codes) + at * p.head_dim;
    for (int d = lane; d < p.head_dim; d += 32) {
      const float x = quotient(low_float<kInput>(row[d]), scale);
      out[d] = static_cast<uint8_t>(fp8 ? e4m3_of(x) : static_cast<uint32_t>(int8_of(x)));
    }
  }
};

template <class Launcher>
Status dispatch_quantize_rows(const QuantizeRowsCall& call, Launcher& launcher) {
  if (call.tokens < 1 || call.cols < 1 || call.x == nullptr || call.codes == nullptr ||
      call.scales == nullptr) {
    return error(StatusCode::invalid_argument,
                 "[quantize_rows] cuda: x, codes, scales and at least one number are "
                 "needed; found ",
                 call.tokens, " tokens of ", call.cols);
  }
  if (call.numbers != nullptr && (!call.fp8 || call.numbers_stride < call.cols)) {
    return error(StatusCode::invalid_argument,
                 "[quantize_rows] cuda: numbers of e4m3 codes and a stride of at least ",
                 call.cols, " are needed; found ", call.fp8 ? "e4m3" : "int8",
                 ", stride ", call.numbers_stride);
  }
  const Grid grid = {call.tokens};
  if (call.input == Float16::f16) {
    using Kernel = QuantizeRows<Float16::f16>;
    launcher.template launch<Kernel>(grid, Kernel::kSharedBytes, call);
  } else {
    using Kernel = QuantizeRows<Float16::bf16>;
    launcher.template launch<Kernel>(grid, Kernel::kSharedBytes, call);
  }
  return ok_status();
}

template <class Launcher>
Status dispatch_store_kv(const StoreKvCall& call, Launcher& launcher) {
  const auto lacks = [&](const StoreKvCall::Rows& rows) {
    return rows.x == nullptr || rows.codes == nullptr ||
           (call.form != KvForm::f16 && rows.scales == nullptr);
  };
  if (call.tokens < 1 || call.kv_heads < 1 || call.head_dim < 1 || lacks(call.keys) ||
      lacks(call.values) || call.positions == nullptr) {
    return error(StatusCode::invalid_argument,
                 "[kv] cuda: x, positions, codes, scales and at least one number are "
                 "needed; found ",
                 call.tokens, " tokens, ", call.kv_heads, " heads of ", call.head_dim);
  }
  const Grid grid = {call.tokens, (call.kv_heads + 3) / 4, 2};
  if (call.input == Float16::f16) {
    launcher.template launch<StoreKv<Float16::f16>>(grid, 0, call);
  } else {
    launcher.template launch<StoreKv<Float16::bf16>>(grid, 0, call);
  }
  return ok_status();
}

}  // namespace nibble::cuda
