// Two-dimensional convolution of one image, float and integer.
//
// y[o, i, j] = sum_{c, a, b} x[c, i * stride_h + a - pad_h, j * stride_w + b - pad_w]
//                            * w[o, c, a, b] + bias[o]          zeros outside the image
//
//   x     [channels, height, width]
//   w     [outputs, channels / groups, kernel_h, kernel_w], read as [outputs, patch]
//   bias  [outputs] or null
//   y     [outputs, out_height, out_width]
//
// f32  weights plain or packed under any scheme, dequantized when prepared (a convolution
//      reads each weight once per pixel: it is bound by products, not by bytes).
//      tolerance_spec: |y - reference| <= 2 (patch + 8) 2^-24 (sum |x| |w| + |bias|)
// s8   x uint8 or int8 codes (zero point 0, so the border is code 0), w int8 codes, y the
//      int32 sums without a bias: exact, the same bits in every row. patch <= 2^16, so
//      that patch * 255 * 128 < 2^31.
//
// A linear layer is the case height = width = kernel = 1. Results never depend on the
// thread count. prepare allocates; run uses per-thread scratch. Safe to call from any
// thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/cpu.h"
#include "kernels/base/status.h"
#include "kernels/ops/linear/linear.h"

namespace nibble {

struct Conv2dShape {
  int64_t channels = 0, height = 0, width = 0;
  int64_t outputs = 0;
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_h = 0, pad_w = 0;
  int64_t groups = 1;
  int64_t out_height() const { return (height + 2 * pad_h - kernel_h) / stride_h + 1; }
  int64_t out_width() const { return (width + 2 * pad_w - kernel_w) / stride_w + 1; }
  int64_t patch() const { return channels / groups * kernel_h * kernel_w; }
};

// The definitions. float sums in double, one rounding at the end.
void conv2d_reference(const Conv2dShape& shape, const float* x, const float* weight,
                      const float* bias, float* y);
// codes: bytes, two's complement unless unsigned_input.
void conv2d_s8_reference(const Conv2dShape& shape, const uint8_t* codes,
                         bool unsigned_input, const int8_t* weight, int32_t* acc);

// One row of kernels.inc.
struct PanelIsa;   // ops/panel/panel.h
struct ConvLanes;  // ops/conv2d/lanes.h
struct Conv2dKernel {
  const char* name;  // conv2d_<activation>_<weight>__<isa>
  uint32_t flags;    // the CPU flags it needs
  LinearActivation activation;
  const PanelIsa* panel;  // null in the reference rows
  // s8, where the CPU's vectors can hold outputs: for shapes that have enough of them.
  const ConvLanes* lanes = nullptr;
};
const std::vector<Conv2dKernel>& conv2d_kernels();  // the best first
// Never fails: the reference rows need nothing of the CPU.
const Conv2dKernel& select_conv2d(LinearActivation activation,
                                  uint32_t cpu_flags = usable_cpu_flags());

struct PreparedConv2d {
  const Conv2dKernel* kernel = nullptr;
  Conv2dShape shape;
  std::vector<float> weight;  // reference: [outputs, patch]; else tiles [patch, mr]
};
// invalid_argument: a size is not positive, does not divide, or disagrees with the
// weight.
Result<PreparedConv2d> prepare_conv2d(const Conv2dShape& shape,
                                      const LinearWeight& weight,
                                      uint32_t cpu_flags = usable_cpu_flags());
void run_conv2d(const PreparedConv2d& conv, const float* x, const float* bias, float* y);
std::string conv2d_kernel_name(const PreparedConv2d& conv);

struct PreparedConv2dS8 {
  const Conv2dKernel* kernel = nullptr;
  Conv2dShape shape;
  bool unsigned_input = false;
  std::vector<int8_t> weight;   // reference: [outputs, patch]
  bool by_lanes = false;        // vectors of outputs (lanes.h), else of pixels,
  bool by_image = false;        // read where they lie, else gathered
  // else tiles [steps, mr, dwords], channels innermost; by lanes [steps, 1, 2 or 4
  // vectors]
  std::vector<int32_t> packed;
  std::vector<int64_t> at;      // of pixels: where each step lies, bytes
  std::vector<int32_t> sums;    // [outputs], of each output's codes
};
// As above; unsupported: patch > 2^16.
Result<PreparedConv2dS8> prepare_conv2d_s8(const Conv2dShape& shape,
                                           std::span<const int8_t> weight,
                                           bool unsigned_input,
                                           uint32_t cpu_flags = usable_cpu_flags());
void run_conv2d_s8(const PreparedConv2dS8& conv, const uint8_t* codes, int32_t* acc);
// The same sums as codes of the next value, the bytes of two's complement:
//   y[o, i, j] = clamp(rint((float(acc[o, i, j] + bias[o]) * multiplier[o]) / scale))
struct Conv2dCodes {
  const int32_t* bias;      // [outputs]
  const float* multiplier;  // [outputs]
  float scale;
  int lowest, highest;
};
void run_conv2d_s8(const PreparedConv2dS8& conv, const uint8_t* codes,
                   const Conv2dCodes& target, uint8_t* y);
const char* conv2d_s8_kernel_name(const PreparedConv2dS8& conv);

}  // namespace nibble
