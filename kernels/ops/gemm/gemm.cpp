#include "kernels/ops/gemm/gemm.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/parallel.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/scratch.h"

namespace nibble {
namespace {

constexpr int64_t kDepth =
    512;  // of k a piece: a panel and a tile of it stay in L1 and L2
constexpr int64_t kRows = 264;  // of c a part: whole large tiles of every row
constexpr int64_t kCols = 512;
constexpr int kMostTile = 16;  // no row of panel.h has a larger one
constexpr int kMostLanes = 16;

// Whole tiles and panels have one of a few widths: known to the compiler, a line is a few
// moves.
template <int64_t... widths>
bool copy_lines(const float* from, int64_t stride, int64_t depth, int64_t width,
                float* to) {
  const auto copy = [&]<int64_t n>() {
    if (n != width) return false;
    for (int64_t k = 0; k < depth; ++k)
      std::memcpy(to + k * n, from + k * stride, n * sizeof(float));
    return true;
  };
  return (copy.template operator()<widths>() || ...);
}

// k [first, first + depth) of `count` lines from `line` on, line by line or k by k, into
// [depth, width]; lines that are not there become 0.
void pack(const MatrixView<const float>& x, bool lines_are_rows, int64_t line,
          int64_t count, int64_t first, int64_t depth, int64_t width, float* packed) {
  if (lines_are_rows) {
    // 16 of k at a time: what is written stays in L1 until its lines are whole.
    for (int64_t k = 0; k < depth; k += 16) {
      const int64_t steps = std::min<int64_t>(16, depth - k);
      for (int64_t i = 0; i < count; ++i) {
        const float* from = x.row(line + i) + first + k;
        float* to = packed + k * width + i;
        for (int64_t s = 0; s < steps; ++s) to[s * width] = from[s];
      }
    }
  } else if (count == width && copy_lines<4, 6, 12, 16, 32>(x.row(first) + line, x.stride,
                                                            depth, width, packed)) {
    return;
  } else {
    for (int64_t k = 0; k < depth; ++k)
      std::memcpy(packed + k * width, x.row(first + k) + line,
                  static_cast<size_t>(count) * sizeof(float));
  }
  for (int64_t k = 0; k < depth && count < width; ++k)
    std::fill(packed + k * width + count, packed + (k + 1) * width, 0.0f);
}

void reference(const GemmOperand& a, const GemmOperand& b, MatrixView<float> c) {
  const auto at = [](const GemmOperand& x, int64_t i, int64_t j) {
    return static_cast<double>(x.transposed ? x.matrix(j, i) : x.matrix(i, j));
  };
  parallel_for(c.rows, [&](int64_t i) {
    for (int64_t j = 0; j < c.cols; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < a.cols(); ++k) sum += at(a, i, k) * at(b, k, j);
      c(i, j) = static_cast<float>(sum);
    }
  });
}

// Rows [row, row + rows) and columns [col, col + cols) of c.
void part(const PanelIsa& isa, const GemmOperand& a, const GemmOperand& b, int64_t row,
          int64_t rows, int64_t col, int64_t cols, MatrixView<float> c) {
  static thread_local Scratch<float> scratch;
  const int64_t width = 2 * isa.lanes;
  const int64_t panels = (cols + width - 1) / width;
  const int64_t depth = std::min(kDepth, a.cols());
  float* tiles = scratch.get(static_cast<size_t>(
      (isa.padded_rows(rows) + panels * width) * depth + kMostTile * 2 * kMostLanes));
  float* right = tiles + isa.padded_rows(rows) * depth;
  float* acc = right + panels * width * depth;
  for (int64_t first = 0; first < a.cols(); first += depth) {
    const int64_t k = std::min(depth, a.cols() - first);
    for (int64_t p = 0; p < panels; ++p) {
      pack(b.matrix, b.transposed, col + p * width, std::min(width, cols - p * width),
           first, k, width, right + p * width * k);
    }
    float* tile = tiles;
    for (int64_t r = 0; r < rows;) {
      const int mr = isa.next_tile(rows - r);
      pack(a.matrix, !a.transposed, row + r, std::min<int64_t>(mr, rows - r), first, k,
           mr, tile);
      tile += mr * k;
      r += mr;
    }
    for (int64_t p = 0; p < panels; ++p) {
      const float* panel = right + p * width * k;
      const int64_t left = std::min(width, cols - p * width);
      tile = tiles;
      for (int64_t r = 0; r < rows;) {
        const int mr = isa.next_tile(rows - r);
        isa.product_f32(mr, tile, panel, panel + isa.lanes, width, k, false, acc);
        for (int64_t m = 0; m < std::min<int64_t>(mr, rows - r); ++m) {
          float* to = c.row(row + r + m) + col + p * width;
          const float* from = acc + m * width;
          if (first == 0) {
            std::copy_n(from, left, to);
          } else {
            for (int64_t j = 0; j < left; ++j) to[j] += from[j];
          }
        }
        tile += mr * k;
        r += mr;
      }
    }
  }
}

}  // namespace

const std::vector<GemmKernel>& gemm_kernels() {
  static const std::vector<GemmKernel> kernels = {
#include "kernels/ops/gemm/kernels.inc"
  };
  return kernels;
}

const GemmKernel& select_gemm(uint32_t cpu_flags) {
  for (const GemmKernel& kernel : gemm_kernels()) {
    if ((kernel.flags & ~cpu_flags) == 0) return kernel;
  }
  return gemm_kernels().back();  // the definition needs nothing
}

void gemm(const GemmKernel& kernel, const GemmOperand& a, const GemmOperand& b,
          MatrixView<float> c) {
  if (kernel.panel == nullptr) return reference(a, b, c);
  if (a.cols() == 0) {
    for (int64_t i = 0; i < c.rows; ++i) std::fill_n(c.row(i), c.cols, 0.0f);
    return;
  }
  const int64_t down = (c.rows + kRows - 1) / kRows,
                across = (c.cols + kCols - 1) / kCols;
  parallel_for(down * across, [&](int64_t i) {
    const int64_t row = i / across * kRows, col = i % across * kCols;
    part(*kernel.panel, a, b, row, std::min(kRows, c.rows - row), col,
         std::min(kCols, c.cols - col), c);
  });
}

}  // namespace nibble
