#include "ptq/module/fake_quantize_kernel.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "ptq/module/wide.h"

namespace nibble {
namespace {

// Adding and taking away 1.5 * 2^23 rounds a float of magnitude below 2^22 to an integer,
// half to even, and gives +0 for what rounds to zero: nearbyintf without the call, so the
// loop is vector code.
constexpr float kRound = 12582912.0f;

constexpr int64_t kRun = 4096;     // values summed in float before a double takes over
constexpr int64_t kGrain = 32768;  // values worth a task

// The last stretch of a run is padded with zeros, which add nothing.
NIBBLE_EVERY_WIDTH
void forward_run(const float* x, float* y, int64_t n, float s, float low, float high) {
  const int64_t whole = n / kWide * kWide;
  const Wide lows = Wide{} + low, highs = Wide{} + high;
  float padded[kWide] = {};
  for (int64_t i = 0; i < n; i += kWide) {
    const float* from = x + i;
    if (i == whole) {
      for (int64_t l = 0; l < n - i; ++l) padded[l] = x[i + l];
      from = padded;
    }
    Wide u;
    __builtin_memcpy(&u, from, sizeof u);
    u = u / s;
    u = u < lows ? lows : u;  // NaN stays NaN
    u = u > highs ? highs : u;
    u = s * ((u + kRound) - kRound);
    if (i == whole) {
      __builtin_memcpy(padded, &u, sizeof u);
      for (int64_t l = 0; l < n - i; ++l) y[i + l] = padded[l];
    } else {
      __builtin_memcpy(y + i, &u, sizeof u);
    }
  }
}

// inner: 1, or 0 where rounding errors give the scale nothing. total: nullptr where
// neither the scale nor the zero point learns.
NIBBLE_EVERY_WIDTH
void backward_run(const float* x, const float* dy, float* dx, int64_t n, float s,
                  float low, float high, float inner, CellGradient* total) {
  const int64_t whole = n / kWide * kWide;
  const Wide none = {};
  const Wide lows = none + low, highs = none + high;
  float padded[2][kWide] = {};
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = begin + kRun < n ? begin + kRun : n;
    Wide scale = none, outside = none;
    for (int64_t i = begin; i < end; i += kWide) {
      const float *from = x + i, *by = dy + i;
      if (i == whole) {
        for (int64_t l = 0; l < n - i; ++l) {
          padded[0][l] = x[i + l];
          padded[1][l] = dy[i + l];
        }
        from = padded[0];
        by = padded[1];
      }
      Wide u, d;
      __builtin_memcpy(&u, from, sizeof u);
      __builtin_memcpy(&d, by, sizeof d);
      u = u / s;
      Wide v = u < lows ? lows : u;
      v = v > highs ? highs : v;
      const WideBits inside = v == u;
      const Wide passed = inside ? d : none;
      v = (v + kRound) - kRound;
      scale += d * (inside ? inner * (v - u) : v);
      outside += inside ? none : d;
      if (i == whole) {
        __builtin_memcpy(padded[0], &passed, sizeof passed);
        for (int64_t l = 0; l < n - i; ++l) dx[i + l] = padded[0][l];
      } else {
        __builtin_memcpy(dx + i, &passed, sizeof passed);
      }
    }
    if (total == nullptr) continue;
    float lanes[kWide];
    __builtin_memcpy(lanes, &scale, sizeof lanes);
    total->scale += static_cast<double>(sum_of_lanes(lanes));
    __builtin_memcpy(lanes, &outside, sizeof lanes);
    total->zero -= static_cast<double>(s) * static_cast<double>(sum_of_lanes(lanes));
  }
}

// body(cell, first element, count) for every cell.
template <class Body>
void for_each_cell(const ScaleGrid& grid, Body body) {
  const int64_t rows_a_task =
      std::max<int64_t>(1, kGrain / std::max<int64_t>(1, grid.cols));
  at::parallel_for(0, grid.rows, rows_a_task, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t g = 0; g < grid.groups; ++g) {
        const int64_t first = g * grid.group;
        body(row * grid.groups + g, row * grid.cols + first,
             std::min(grid.group, grid.cols - first));
      }
    }
  });
}

bool is_one_cell(const ScaleGrid& grid) { return grid.rows * grid.groups == 1; }

float zero_of(const ScaleGrid& grid, int64_t cell) {
  return grid.zeros.empty() ? 0.0f : grid.zeros[cell];
}

// The product of the levels from `first` on, for every cell of the grid.
std::vector<float> on_grid(const std::vector<ScaleLevel>& scheme,
                           const std::vector<CodedLevel>& levels, size_t first,
                           const ScaleGrid& grid) {
  std::vector<float> product(grid.rows * grid.groups, 1.0f);
  for (size_t k = first; k < levels.size(); ++k) {
    const Block::Kind kind = scheme[k].block.kind;
    for (int64_t cell = 0; cell < grid.rows * grid.groups; ++cell) {
      int64_t index = 0;
      if (kind == Block::Kind::row) index = cell / grid.groups;
      if (kind == Block::Kind::group) index = cell;
      float value = levels[k].values[index];
      if (scheme[k].shifted) value += levels[k].shift;
      product[cell] = k == first ? value : product[cell] * value;
    }
  }
  return product;
}

}  // namespace

bool make_grid(const CodedMatrix& levels, int zero_point, ScaleGrid* grid) {
  const QuantScheme& scheme = levels.scheme;
  if (element_info(scheme.code).kind != ElementKind::integer) return false;
  if (scheme.offset == OffsetKind::minimum) return false;
  int64_t group = 0;
  bool all_tensor = true;
  for (const auto* part : {&scheme.scales, &scheme.offsets}) {
    for (const ScaleLevel& level : *part) {
      switch (level.block.kind) {
        case Block::Kind::tensor:
          break;
        case Block::Kind::row:
          all_tensor = false;
          break;
        case Block::Kind::group:
          all_tensor = false;
          if (group != 0 && group != level.block.cols) return false;
          group = level.block.cols;
          break;
        default:
          return false;
      }
    }
  }
  grid->rows = all_tensor ? 1 : levels.rows;
  grid->cols = all_tensor ? levels.rows * levels.cols : levels.cols;
  grid->group = group != 0 ? group : grid->cols;
  grid->groups = (grid->cols + grid->group - 1) / grid->group;
  grid->lowest = static_cast<float>(code_lowest(scheme));
  grid->highest = static_cast<float>(code_highest(scheme));
  grid->level0 = scheme.scales[0].block.kind;
  if (!scheme.offsets.empty()) grid->zero_level = scheme.offsets[0].block.kind;
  grid->scales = on_grid(scheme.scales, levels.scales, 0, *grid);
  if (scheme.scales.size() > 1)
    grid->outer = on_grid(scheme.scales, levels.scales, 1, *grid);
  if (!scheme.offsets.empty()) {
    grid->zeros = on_grid(scheme.offsets, levels.offsets, 0, *grid);
  } else if (zero_point != 0) {
    grid->zeros.assign(grid->rows * grid->groups, static_cast<float>(zero_point));
  }
  return true;
}

void grid_forward(const ScaleGrid& grid, const float* x, float* y) {
  if (is_one_cell(grid)) {
    const float z = zero_of(grid, 0);
    at::parallel_for(0, grid.cols, kGrain, [&](int64_t begin, int64_t end) {
      forward_run(x + begin, y + begin, end - begin, grid.scales[0], grid.lowest - z,
                  grid.highest - z);
    });
    return;
  }
  for_each_cell(grid, [&](int64_t cell, int64_t first, int64_t n) {
    const float z = zero_of(grid, cell);
    forward_run(x + first, y + first, n, grid.scales[cell], grid.lowest - z,
                grid.highest - z);
  });
}

void grid_backward(const ScaleGrid& grid, const float* x, const float* dy, float* dx,
                   CellGradient* cells) {
  auto run = [&](int64_t cell, int64_t first, int64_t n, CellGradient* sum) {
    const float z = zero_of(grid, cell);
    const float low = grid.lowest - z, high = grid.highest - z, s = grid.scales[cell];
    if (sum != nullptr) *sum = {};
    backward_run(x + first, dy + first, dx + first, n, s, low, high,
                 grid.rounding_error ? 1.0f : 0.0f, sum);
  };
  if (!is_one_cell(grid)) {
    for_each_cell(grid, [&](int64_t cell, int64_t first, int64_t n) {
      run(cell, first, n, cells == nullptr ? nullptr : cells + cell);
    });
    return;
  }
  const int64_t pieces = (grid.cols + kGrain - 1) / kGrain;
  std::vector<CellGradient> sums(pieces);
  at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece * kGrain;
      run(0, first, std::min(kGrain, grid.cols - first),
          cells == nullptr ? nullptr : &sums[piece]);
    }
  });
  if (cells == nullptr) return;
  cells[0] = {};
  for (const CellGradient& sum : sums) {
    cells[0].scale += sum.scale;
    cells[0].zero += sum.zero;
  }
}

}  // namespace nibble
