// The linear layer on a GPU: few tokens at the speed of its memory.
//
// y[t, n] = sum_k x[t, k] w[n, k] + bias[n]
//
//   x     [tokens, K] f16 or bf16, or int8 codes under one scale a token (quantize_rows);
//         16-bit floats may be codes' numbers under one scale a token likewise (FP8)
//   w     [N, K] packed; pack_cuda_linear lays it out
//   bias  [N] f32 or null
//   y     [tokens, N] f16, bf16 or f32
//
// Rows of the table (form of the weight, what x may be):
//   int4     intN, uintN of at most 4 bits, whole zero points     f16, bf16
//   table4   NF4, FP4, E2M1, IQ4NL and other tables of 16         f16, bf16
//   int8     intN, uintN of 5 to 8 bits, whole zero points        f16, bf16
//   e4m3 e5m2                                                     f16, bf16
//   int8_s8  intN of 5 to 8 bits, one scale a row or tensor       int8
// for scales along rows in groups of a multiple of 32 columns (or one a row, of any
// length); no minima.
//
// Weights go through registers into the tensor cores, which multiply 8 tokens as fast as
// one; x lies in shared memory. Blocks split K until the GPU is full twice (plan_linear);
// the last block of a tile adds the parts in their order, so each run gives the same bits
// on the same kind of GPU.
//
// tolerance_spec, x rounded to its type before:
//   |y - reference| <= linear_tolerance(K) 2 (sum_k |x| |w|* + |bias|) + table |x| |w|
//                      + half a unit in y's last place
// 2: the tensor cores cut what they add to the precision of the largest. table: 2^-11
// (f16) or 2^-8 (bf16) for tables whose values those types do not hold, else 0.
// int8_s8: bit for bit linear.h's definition.
//
// Public functions here need no CUDA header: cuda.cu or, in a build without nvcc,
// no_cuda.cpp, whose functions say so (unsupported). Pointers of LinearCall are device
// memory; stream is a cudaStream_t.
#pragma once

#include <array>

#include "kernels/ops/linear/cuda_layout.h"
#include "kernels/ops/linear/linear.h"

namespace nibble::cuda {

// A weight in the layout of cuda_layout.h, in host memory.
struct LinearPacked {
  LinearForm form = LinearForm::int4;
  LinearScale scale = LinearScale::f32;
  int rows = 0, cols = 0;
  int tiles = 0, units = 0;
  int group = 0, groups = 0;         // columns; their number in a row
  std::array<float, 16> table = {};  // table4
  bool table_is_rounded = false;     // some value is not an f16
  bool has_zeros = false;
  Bytes codes, scales, zeros;
  int64_t bytes() const;
};
// unsupported: no row for the scheme (the message names it). data_loss: linear_weight's.
Result<LinearPacked> pack_linear(const LinearWeight& weight, bool int8_activations);
// The same without the codes, scales and zeros; `scale` is what the values allow.
Result<LinearPacked> linear_frame(const QuantScheme& scheme, int64_t rows, int64_t cols,
                                  bool int8_activations);
bool can_pack_linear(const QuantScheme& scheme, int64_t cols, bool int8_activations);
// Weights that read the same x as one, a's rows before b's: what one call then does.
// false: they differ in layout, or a's rows end within a tile.
bool can_stack(const LinearPacked& a, const LinearPacked& b);
LinearPacked stack(const LinearPacked& a, const LinearPacked& b);
// The code of every element as pack_linear stored it, [rows, cols]; tests.
std::vector<uint8_t> stored_codes(const LinearPacked& packed);

// How a call is cut into blocks.
struct LinearPlan {
  int token_tiles = 1;  // of 8 tokens: 1, 2, 4 or 8
  int row_blocks = 1;   // blocks of 128 rows
  int stages = 1;       // of K
  int splits = 1;       // blocks that share the rows, each a run of stages
  int stages_per_split = 1;
  int64_t partial_bytes = 0;  // of f32 or int32, when splits > 1
};
// tokens <= kMostTokens.
inline constexpr int kMostTokens = 64;
LinearPlan plan_linear(LinearForm form, int rows, int cols, int tokens,
                       int multiprocessors);

struct LinearCall {
  LinearForm form = LinearForm::int4;
  LinearScale scale = LinearScale::f32;
  Float16 input = Float16::f16;  // unless form is int8_s8
  Output output = Output::f16;
  int rows = 0, cols = 0, tiles = 0, units = 0, group = 0, groups = 0;
  std::array<float, 16> table = {};
  const void *codes = nullptr, *scales = nullptr, *zeros = nullptr;
  const void* x = nullptr;
  int64_t x_stride = 0;             // elements
  const float* x_scales = nullptr;  // [tokens]; int8_s8 has them, others may
  int tokens = 0;
  const float* bias = nullptr;
  void* y = nullptr;
  int64_t y_stride = 0;
  // partial: plan.partial_bytes. counters: plan.row_blocks words, 0 before and after.
  void* partial = nullptr;
  uint32_t* counters = nullptr;
};
// The call's fields that the weight gives; pointers are the caller's to set.
LinearCall linear_call(const LinearPacked& packed);

// w [rows, cols] f16 or bf16 of a packed weight: the scheme's values, rounded once.
struct DequantizeCall {
  LinearForm form = LinearForm::int4;
  LinearScale scale = LinearScale::f32;
  Float16 type = Float16::f16;
  int rows = 0, cols = 0, tiles = 0, units = 0, group = 0, groups = 0;
  std::array<float, 16> table = {};
  const void *codes = nullptr, *scales = nullptr, *zeros = nullptr;
  void* w = nullptr;
  int64_t stride = 0;  // elements
};
DequantizeCall dequantize_call(const LinearCall& call);
Status run_dequantize(const DequantizeCall& call, void* stream);

// Starts the kernel; at most kMostTokens tokens. unsupported: no CUDA in this build.
// invalid_argument: a shape or pointer (names it). internal: CUDA's own error.
Status run_linear(const LinearCall& call, const LinearPlan& plan, void* stream);

}  // namespace nibble::cuda
