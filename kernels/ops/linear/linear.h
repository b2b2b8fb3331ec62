// A linear layer: many weight schemes, one table of kernels.
//
// y[t, n] = sum_k x[t, k] * w[n, k] + bias[n]
//
//   x     [tokens, K] f32
//   w     [N, K] plain (f32, f16, bf16) or packed
//   bias  [N] or null
//   y     [tokens, N] f32
//
// Activation f32: w is the dequantized weight. tolerance_spec, for every row of the
// table:
//   |y - reference| <= 2 (K + 8) 2^-24 (sum_k |x| |w|* + |bias|),
//   |w|* = |s| (|q| + |z|) + |m|: linear_magnitude computes the bracket.
// K products and sums round in f32, each by at most 2^-24 of what has been added so far;
// a row may split s (q - z) into s q and s z, hence |w|* in place of |w|; twice, for
// group sums. Rows that read activations as 31-bit numbers add 2^-31 (max over the group
// of |x|) |q s| a column, which is less unless one activation is 64 K times all others.
//
// Activation bf16: the same of x' and w' in place of x and w. x' is x rounded to bf16
// (half to even; numbers below 2^-126 may count as 0), w' is w with the value of each
// code, or a plain weight, rounded so. Only table elements whose values are not bf16
// numbers change (NF4, FP4: by 2^-9 at most): integers and floats of 8 bits are.
//
// Activation s8, bit for bit the same in every row:
//   a    = max_k |x[t, k]|,  s_x = a / 127 (1 when a = 0),  q_x = rint(x / s_x)
//   I[g] = sum over group g of q_x (q_w - z),  S[g] = sum over g of q_x   int32, exact
//   v    = 0;  g ascending: v = fma(float(I[g]), s[g], v), then v = fma(float(S[g]), m[g], v)
//   y    = v * s_x + bias      f32 in the order written: two roundings, no FMA
// where a group is the columns that one scale, zero point and minimum govern, cut into
// pieces of 2^16 columns (127 * 255 * 2^16 < 2^31), and s, z, m the products of their
// levels. LinearInput changes how x is rounded: s_x is then given, or there is one for each
// run G of its columns, with a group being what both scales govern:
//   u    = v s_x of the first G;  then u = fma(v, s_x[t, G], u);   y = u + bias
//
// Results never depend on the thread count: the work is cut by problem size, and each
// output has one fixed order of summation. Different token counts may take different
// orders.
//
// invalid_argument / data_loss: the weight is malformed (linear_weight, repack). run
// assumes what repack checked and shapes that agree. repack allocates; run uses
// per-thread scratch. Safe to call from any thread, several at a time.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/cpu.h"
#include "kernels/base/matrix_view.h"
#include "kernels/base/status.h"
#include "kernels/ops/linear/linear_isa.h"
#include "kernels/ops/linear/weight.h"

namespace nibble {

enum class LinearActivation : uint8_t { f32, bf16, s8 };

struct LinearKernel;

// How the rows for s8 activations round x. By default each token has a scale of its own.
struct LinearInput {
  int64_t group = 0;  // columns under one scale of the token; 0: all of them
  float scale = 0;    // > 0: calibrated, of every token; 0: from the data
  int lowest = -127;  // code; -128 only beside a calibrated scale
  bool operator==(const LinearInput&) const = default;
};

// Scales, zero points or minima of a prepared weight (linear_isa.h).
struct PreparedLevels {
  Bytes bytes;
  LevelForm form = LevelForm::f32;
};

// A weight in the layout its row likes best. Made by repack, read by the same row's run.
struct PreparedLinear {
  const LinearKernel* kernel = nullptr;
  int64_t rows = 0;   // N
  int64_t cols = 0;   // K
  int64_t lanes = 0;  // outputs a panel: one vector of the row's ISA
  int64_t panels =
      0;  // even, so that tiles of two vectors never end early; padded with zeros
  int64_t group = 0;  // columns one scale governs; the last group may be shorter
  int64_t groups = 0;
  int64_t padded_cols = 0;  // each group padded to whole steps of the code layout
  int64_t panel_bytes = 0;  // of codes
  bool is_signed = false;   // the scheme's codes are intN
  int bits = 0;             // stored bits a value: 4, 8, 16, 32
  std::array<float, 16> table = {};  // bits 4: what a stored code stands for
  Bytes values;                      // the same in bf16, as linear_bf16.h lays it out
  Bytes codes;              // as ops/linear/linear_isa.h lays them out
  PreparedLevels scales, zeros, minima;  // the last two empty where there are none
  LinearInput input;        // of s8 rows
  LinearWeight weight;      // the source, for rows that decode it at run time
};

// One row of kernels.inc.
struct PanelIsa;  // ops/panel/panel.h
struct LinearIsa;
struct LinearBf16Isa;
struct LinearTileIsa;
struct LinearKernel {
  const char* name;  // linear_<activation>_<weight>__<isa>
  uint32_t flags;    // the CPU flags it needs
  LinearActivation activation;
  bool (*accepts)(const QuantScheme& scheme, int64_t cols);
  Result<PreparedLinear> (*repack)(const LinearKernel& kernel, const LinearWeight& weight,
                                   const LinearInput& input);
  void (*run)(const PreparedLinear& weight, MatrixView<const float> x, const float* bias,
              MatrixView<float> y);
  const PanelIsa* panel;  // null in reference rows
  const LinearIsa* isa;   // null in reference rows and those that only need the panel
  const LinearBf16Isa* bf16 = nullptr;  // of the rows for bf16 activations
  const LinearTileIsa* tiles = nullptr;  // of the rows with tile products

  bool can_run(const QuantScheme& scheme, int64_t cols, LinearActivation kind) const {
    return kind == activation && accepts(scheme, cols);
  }
};
const std::vector<LinearKernel>& linear_kernels();  // the best first
// The first row that the CPU, the scheme and rows of `cols` columns allow; null when
// there is none (s8 only: every scheme has an f32 and a bf16 row).
const LinearKernel* select_linear(const QuantScheme& scheme, int64_t cols,
                                  LinearActivation activation,
                                  uint32_t cpu_flags = usable_cpu_flags());
// The row for `wanted` activations where the weight allows it and, for bf16, the CPU has
// the product; else the one for f32.
const LinearKernel* preferred_linear(const LinearWeight& weight, LinearActivation wanted);
// input: of s8 rows; its groups share runs of at least 8 columns with the weight's, else
// unsupported.
Result<PreparedLinear> prepare_linear(const LinearKernel& kernel,
                                      const LinearWeight& weight,
                                      const LinearInput& input = {});
void run_linear(const PreparedLinear& weight, MatrixView<const float> x,
                const float* bias, MatrixView<float> y);

// The definition. f32, bf16: products and sums in double, one rounding at the end. s8: as
// above (accepts_integer must hold). Allocates.
Status linear_reference(const LinearWeight& weight, LinearActivation activation,
                        MatrixView<const float> x, const float* bias,
                        MatrixView<float> y, const LinearInput& input = {});
// magnitude[t, n] = sum_k |x[t, k]| |w[n, k]|* + |bias[n]|, the bracket of
// tolerance_spec.
Status linear_magnitude(const LinearWeight& weight, MatrixView<const float> x,
                        const float* bias, MatrixView<double> magnitude);
inline double linear_tolerance(int64_t cols) {
  return 2.0 * static_cast<double>(cols + 8) * 0x1.0p-24;
}

// Scales and offsets constant along runs of >= 8 columns of rows of `cols`: a step of the
// 4-bit layout; shorter groups would be mostly padding.
bool has_groups(const QuantScheme& scheme, int64_t cols);
// So, with integer codes and whole zero points: what s8 activations can meet.
bool accepts_integer(const QuantScheme& scheme, int64_t cols);
// Columns of a row under one scale, zero point and minimum: the greatest common divisor
// of the levels' blocks, `cols` when they span the row; 0 when no such run exists (c
// blocks, and f blocks that do not divide the row).
int64_t group_columns(const QuantScheme& scheme, int64_t cols);
// The same under one scale of the activations as well.
int64_t group_columns(const QuantScheme& scheme, int64_t cols, const LinearInput& input);

}  // namespace nibble
