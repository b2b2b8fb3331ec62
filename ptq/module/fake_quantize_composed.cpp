#include "ptq/module/fake_quantize_composed.h"

#include <ATen/ATen.h>

namespace nibble::composed {
namespace {

using torch::Tensor;

bool is_one_cell(const ScaleGrid& grid) { return grid.rows * grid.groups == 1; }

// A number a cell as it meets the values: broadcast where rows have one cell each.
Tensor spread(const ScaleGrid& grid, const std::vector<float>& cells, const Tensor& x) {
  const Tensor all = at::tensor(cells, at::kFloat).to(x.device());
  if (is_one_cell(grid)) return all.squeeze();
  const Tensor rows = all.view({grid.rows, grid.groups});
  if (grid.groups == 1) return rows;
  return rows.repeat_interleave(grid.group, 1).narrow(1, 0, grid.cols);
}

Tensor as_grid(const ScaleGrid& grid, const Tensor& x) {
  return is_one_cell(grid) ? x : x.reshape({grid.rows, grid.cols});
}

// u = x / s, and the range that its codes leave it.
struct Coded {
  Tensor s, u, low, high;
  Coded(const ScaleGrid& grid, const Tensor& x) : s(spread(grid, grid.scales, x)) {
    u = as_grid(grid, x) / s;
    const Tensor z =
        grid.zeros.empty() ? at::zeros({}, x.options()) : spread(grid, grid.zeros, x);
    low = grid.lowest - z;
    high = grid.highest - z;
  }
  Tensor rounded() const { return at::minimum(at::maximum(u, low), high).round_(); }
};

Tensor sum_of_cells(const ScaleGrid& grid, const Tensor& values) {
  const Tensor wide = values.to(at::kDouble);
  if (is_one_cell(grid)) return wide.sum().view({1, 1});
  const int64_t missing = grid.groups * grid.group - grid.cols;
  return at::constant_pad_nd(wide, {0, missing})
      .view({grid.rows, grid.groups, grid.group})
      .sum(-1);
}

}  // namespace

Tensor grid_forward(const ScaleGrid& grid, const Tensor& x) {
  const Coded coded(grid, x);
  return coded.rounded().mul_(coded.s).view_as(x);
}

GridGradients grid_backward(const ScaleGrid& grid, const Tensor& x, const Tensor& dy) {
  const Coded coded(grid, x);
  const Tensor d = as_grid(grid, dy);
  const Tensor inside = coded.u.ge(coded.low).logical_and_(coded.u.le(coded.high));
  const Tensor nothing = at::zeros({}, x.options());
  const Tensor v = coded.rounded();
  const Tensor within = grid.rounding_error ? v - coded.u : nothing;
  return {.dx = at::where(inside, d, nothing).view_as(x),
          .scale = sum_of_cells(grid, d * at::where(inside, within, v)),
          .zero = sum_of_cells(grid, at::where(inside, nothing, d) * -coded.s)};
}

}  // namespace nibble::composed
