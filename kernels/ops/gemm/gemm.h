// Dense f32 matrix products for calibration and training: both operands change from call
// to call, so that nothing is prepared (ops/linear is for weights that stay).
//
//   c[i, j] = sum_k a(i, k) * b(k, j)
//
//   a  [m, k], or [k, m] where a_transposed       b  [k, n], or [n, k] where b_transposed
//   c  [m, n], overlapping neither
//
// Tiles of a against panels of b through ops/panel, 512 of k at a time; within these one
// FMA each, k ascending, then the sums of the pieces in order. tolerance_spec: |c -
// reference| <= 2 (k + 8) 2^-24 sum_k |a b|. The split is by size alone: the same bits at
// any thread count (nested calls run on the caller's thread). Per-thread scratch of at
// most 2 MiB; safe from any thread, several at a time.
#pragma once

#include <vector>

#include "kernels/base/cpu.h"
#include "kernels/base/matrix_view.h"

namespace nibble {

struct PanelIsa;

struct GemmOperand {
  MatrixView<const float> matrix;
  bool transposed = false;
  int64_t rows() const { return transposed ? matrix.cols : matrix.rows; }
  int64_t cols() const { return transposed ? matrix.rows : matrix.cols; }
};

struct GemmKernel {
  const char* name;
  uint32_t flags;
  const PanelIsa* panel;  // null: the definition, in double
};
const std::vector<GemmKernel>& gemm_kernels();  // the best first
const GemmKernel& select_gemm(uint32_t cpu_flags = usable_cpu_flags());

// The shapes must agree.
void gemm(const GemmKernel& kernel, const GemmOperand& a, const GemmOperand& b,
          MatrixView<float> c);

}  // namespace nibble
