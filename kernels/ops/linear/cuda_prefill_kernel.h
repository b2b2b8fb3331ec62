// The CUDA kernels of cuda_prefill.h and their dispatch, for the GPU and for the emulator
// alike.
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/linear/cuda_prefill.h"

namespace nibble::cuda {

// Eight columns of a row a thread: two words of the packed codes.
template <LinearForm kForm>
struct UnpackCodes {
  using Params = UnpackCodesCall;
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 8;
  static_assert(!is_4_bit(kForm));

  NIBBLE_DEVICE static void run(const Params& p) {
    const int eighth = block_y() * kThreads + thread_index(), row = block_x();
    const int first = 8 * eighth;
    if (first >= p.stride) return;
    uint32_t words[2] = {0, 0};
    const int unit = first / kSlab;  // a unit of 8 bits is a slab
    if (unit < p.units) {
      const int tile = row / kTileRows, m = row / 16 % 2, h = row / 8 % 2, g = row % 8;
      const int lane = 4 * g + first % kSlab / 8;
      const uint8_t* const codes =
          static_cast<const uint8_t*>(p.codes) +
          (((static_cast<int64_t>(tile) * p.units + unit) * 2 + m) * 32 + lane) * 16;
      NIBBLE_UNROLL
      for (int step = 0; step < 2; ++step) {
        const uint32_t word = load4(codes + 4 * (2 * step + h));
        // int8_s8: in order. Else columns 0, 1 in bytes 1 and 3, 2, 3 in bytes 0 and 2.
        words[step] =
            kForm == LinearForm::int8_s8 ? word : permute_bytes(word, 0, 0x2031);
      }
    }
    uint8_t* const out = static_cast<uint8_t*>(p.w) + row * p.stride + first;
    NIBBLE_UNROLL
    for (int c = 0; c < 8; ++c) {
      if (first + c >= p.stride) continue;
      const uint32_t code = words[c / 4] >> (8 * (c % 4)) & 255;
      out[c] = static_cast<uint8_t>(first + c < p.cols ? code : 0);
    }
  }
};

struct Epilogue {
  using Params = EpilogueCall;
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 8;

  NIBBLE_DEVICE static void run(const Params& p) {
    const int row = block_y() * kThreads + thread_index(), token = block_x();
    if (row >= p.rows) return;
    const int64_t at = token * p.sums_stride + row;
    float value = p.int_sums ? static_cast<float>(static_cast<const int32_t*>(p.sums)[at])
                             : static_cast<const float*>(p.sums)[at];
    if (p.w_scales != nullptr) {
      const int64_t place = static_cast<int64_t>(row / kTileRows) * kTileRows +
                            level_place(row % kTileRows);
      value = value * (p.w_scales[place] * p.w_unit);
    }
    if (p.x_scales != nullptr) value = value * p.x_scales[token];
    if (p.bias != nullptr) value = value + p.bias[row];
    store_output(p.y, token * p.y_stride + row, p.output, value);
  }
};

template <class Launcher>
Status dispatch_unpack_codes(const UnpackCodesCall& call, Launcher& launcher) {
  if ((call.form != LinearForm::int8_s8 && call.form != LinearForm::e4m3) ||
      call.codes == nullptr || call.w == nullptr || call.stride < call.cols ||
      call.rows < 1 || call.cols < 1) {
    return error(StatusCode::invalid_argument,
                 "[linear] cuda: codes of int8_s8 or e4m3, w and a stride of at least ",
                 call.cols, " are needed; found stride ", call.stride);
  }
  const Grid grid = {call.rows,
                     static_cast<int>((call.stride + 8 * 256 - 1) / (8 * 256))};
  if (call.form == LinearForm::int8_s8) {
    launcher.template launch<UnpackCodes<LinearForm::int8_s8>>(grid, 0, call);
  } else {
    launcher.template launch<UnpackCodes<LinearForm::e4m3>>(grid, 0, call);
  }
  return ok_status();
}

template <class Launcher>
Status dispatch_epilogue(const EpilogueCall& call, Launcher& launcher) {
  if (call.sums == nullptr || call.y == nullptr || call.sums_stride < call.rows ||
      call.y_stride < call.rows || call.rows < 1 || call.tokens < 1) {
    return error(StatusCode::invalid_argument,
                 "[linear] cuda: sums, y and strides of at least ", call.rows,
                 " are needed; found ", call.tokens, " tokens, strides ",
                 call.sums_stride, " and ", call.y_stride);
  }
  const Grid grid = {call.tokens, (call.rows + 255) / 256};
  launcher.template launch<Epilogue>(grid, 0, call);
  return ok_status();
}

}  // namespace nibble::cuda
