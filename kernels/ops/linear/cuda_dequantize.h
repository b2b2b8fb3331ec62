// A packed weight back to f16 or bf16, for products of many tokens: kernel and dispatch,
// for the GPU and for the emulator alike.
//
// A warp takes a tile's unit: lane 4 g + t has rows g, g + 8, g + 16, g + 24 and columns
// 8 t .. 8 t + 7 of each slab (cuda_layout.h).
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/linear/cuda_layout.h"
#include "kernels/ops/linear/cuda_linear.h"

namespace nibble::cuda {

struct DequantizeParams {
  const uint8_t *codes, *scales, *zeros;
  float table[16];
  LinearScale scale;
  uint16_t* w;
  int64_t stride;
  int rows, cols, units, group, groups;
  int is_aligned;  // eight columns of w are 16 aligned bytes
};

template <LinearForm kForm, Float16 kType>
struct Dequantize {
  using Params = DequantizeParams;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps, kBlocksPerMultiprocessor = 4;

  NIBBLE_DEVICE static float scale_at(const Params& p, int64_t place) {
    if (p.scale == LinearScale::f32) return as_float(load4(p.scales + 4 * place));
    if (p.scale == LinearScale::f16) {
      return f16_to_float(reinterpret_cast<const uint16_t*>(p.scales)[place]);
    }
    const uint32_t code = p.scales[place];
    return as_float(code == 0 ? 0x00400000u : code << 23);
  }
  // Column i of the step's four; `words` are the step's: one, or rows g and g + 8.
  NIBBLE_DEVICE static float value(const Params& p, const uint32_t (&words)[2], int h,
                                   int i, float zero) {
    if constexpr (is_4_bit(kForm)) {
      const int pair = i / 2 * 2 + h;
      const int bit =
          kForm == LinearForm::int4 ? i % 2 * 16 + 4 * pair : 8 * pair + i % 2 * 4;
      const uint32_t code = words[0] >> bit & 15;
      if constexpr (kForm == LinearForm::table4) return p.table[code];
      return static_cast<float>(code) - zero;
    } else {
      const int byte = i < 2 ? 1 + 2 * i : 2 * i - 4;
      const uint32_t code = words[h] >> (8 * byte) & 255;
      if constexpr (kForm == LinearForm::int8) return static_cast<float>(code) - zero;
      if constexpr (kForm == LinearForm::e5m2) return f16_to_float(code << 8);
      return f16_to_float((code & 0x80) << 8 | (code & 0x7f) << 7);
    }
  }

  NIBBLE_DEVICE static void run(const Params& p) {
    const int unit = block_x() * kWarps + thread_index() / 32, tile = block_y();
    if (unit >= p.units) return;
    const int lane = thread_index() % 32, g = lane / 4, t = lane % 4;
    constexpr int kSlabs = unit_columns(kForm) / kSlab;
    NIBBLE_UNROLL
    for (int m = 0; m < 2; ++m) {
      const Words4 v = stream16(
          p.codes +
          (((static_cast<int64_t>(tile) * p.units + unit) * 2 + m) * 32 + lane) * 16);
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
      NIBBLE_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        const int column = unit * unit_columns(kForm) + slab * kSlab + 8 * t;
        if (column >= p.cols) continue;
        NIBBLE_UNROLL
        for (int h = 0; h < 2; ++h) {
          const int in_tile = 16 * m + 8 * h + g, row = tile * kTileRows + in_tile;
          if (row >= p.rows) continue;
          const int64_t place =
              (static_cast<int64_t>(tile) * p.groups + column / p.group) * kTileRows +
              level_place(in_tile);
          const float scale = scale_at(p, place);
          const float zero = p.zeros != nullptr ? static_cast<float>(p.zeros[place])
                             : kForm == LinearForm::int8 ? 128.0f
                                                         : 8.0f;
          uint32_t halves[8];
          NIBBLE_UNROLL
          for (int c = 0; c < 8; ++c) {
            const int step = c / 4;
            const uint32_t of_step[2] = {
                is_4_bit(kForm) ? words[(2 * slab + step) % 4] : words[2 * step],
                words[2 * step + 1]};
            halves[c] = float_to_16<kType>(scale * value(p, of_step, h, c % 4, zero));
          }
          uint16_t* const out = p.w + row * p.stride + column;
          if (p.is_aligned && column + 8 <= p.cols) {
            *reinterpret_cast<Words4*>(out) = {
                halves[0] | halves[1] << 16, halves[2] | halves[3] << 16,
                halves[4] | halves[5] << 16, halves[6] | halves[7] << 16};
          } else {
            for (int c = 0; c < 8 && column + c < p.cols; ++c) {
              out[c] = static_cast<uint16_t>(halves[c]);
            }
          }
        }
      }
    }
  }
};

template <class Launcher>
Status dispatch_dequantize(const DequantizeCall& call, Launcher& launcher) {
  if (call.codes == nullptr || call.scales == nullptr || call.w == nullptr ||
      call.stride < call.cols || call.form == LinearForm::int8_s8) {
    return error(
        StatusCode::invalid_argument,
        "[linear] cuda: codes for float activations, scales, w and a stride of at "
        "least ",
        call.cols, " are needed; found stride ", call.stride);
  }
  DequantizeParams p = {};
  p.codes = static_cast<const uint8_t*>(call.codes);
  p.scales = static_cast<const uint8_t*>(call.scales);
  p.zeros = static_cast<const uint8_t*>(call.zeros);
  for (size_t i = 0; i < 16; ++i) p.table[i] = call.table[i];
  p.scale = call.scale;
  p.w = static_cast<uint16_t*>(call.w);
  p.stride = call.stride;
  p.rows = call.rows;
  p.cols = call.cols;
  p.units = call.units;
  p.group = call.group;
  p.groups = call.groups;
  p.is_aligned = reinterpret_cast<uintptr_t>(call.w) % 16 == 0 && call.stride % 8 == 0;
  const Grid grid = {(call.units + 7) / 8, call.tiles};
  const auto with_form = [&]<LinearForm kForm>() {
    if (call.type == Float16::f16) {
      launcher.template launch<Dequantize<kForm, Float16::f16>>(grid, 0, p);
    } else {
      launcher.template launch<Dequantize<kForm, Float16::bf16>>(grid, 0, p);
    }
  };
  if (call.form == LinearForm::int4) with_form.template operator()<LinearForm::int4>();
  if (call.form == LinearForm::table4)
    with_form.template operator()<LinearForm::table4>();
  if (call.form == LinearForm::int8) with_form.template operator()<LinearForm::int8>();
  if (call.form == LinearForm::e4m3) with_form.template operator()<LinearForm::e4m3>();
  if (call.form == LinearForm::e5m2) with_form.template operator()<LinearForm::e5m2>();
  return ok_status();
}

}  // namespace nibble::cuda
