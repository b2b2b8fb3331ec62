// GPTQ: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
// Pre-trained Transformers", arXiv 2210.17323.
//
// Columns are rounded one after the other; each error is carried over to the columns that
// are still free, in the direction that costs the layer's outputs least:
//
//   H = X^T X + damping * mean(diag(X^T X)) * I               sec. 3.1, 3.3
//   U upper triangular, U^T U = H^-1                           sec. 3.3, step 3
//   e_j = (w_j - Q(w_j)) / U_jj;   w_k -= e_j * U_jk, k > j    eq. 2, 3 and algorithm 1
//
// What is done around it:
//   * the price of rounding column j after carry-over is 1 / U_jj^2 times the squared
//   error:
//     those are the weights of the scale search (rule mse);
//   * match_float: on a quantized prefix the layer sees x where the float model saw f.
//   The
//     weights that are rounded are then W + W D H^-1, D = (F - X)^T X: the least-squares
//     answer to "W f from x" (the aim of GPTAQ, arXiv 2504.02692);
//   * refine_sweeps: descent over single codes of the full objective dW H dW^T.
//   Carry-over
//     sees only the columns behind it and leaves some of it on the table;
//   * refine_scales: rounds of one Newton step of every scale on the same objective,
//   codes
//     fixed, each followed by such a descent.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <span>

#include "ptq/error.h"
#include "ptq/methods/gptq_factor.h"
#include "ptq/methods/method.h"
#include "ptq/methods/rounding.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

constexpr int64_t kColumns =
    128;  // columns between two updates of all that follow (sec. 3.2)
constexpr int64_t kRows = 32;  // rows solved together; rows do not depend on each other

template <class T>
T value_or_fail(const LayerProblem& problem, Result<T> result) {
  if (!result.ok())
    throw gptq_failure(problem, result.status().code(), result.status().message());
  return std::move(result).value();
}

// Everything that the rows of one layer share, in solving order.
struct Columns {
  const std::vector<int64_t>& order;
  const double* u;  // [in, in]
  const double* h;  // [in, in], damped
  int64_t count;
};

// The scales and offsets of a layer, element by element in original order, and the levels
// that they come from.
class Grid {
 public:
  Grid(const LayerProblem& problem, CodedMatrix& coded, std::span<const float> price)
      : problem_(problem),
        coded_(coded),
        price_(price),
        rounding_(problem.scheme),
        scales_(expanded_scales(coded)),
        offsets_(expanded_offsets(coded)),
        late_group_(problem.gptq.static_groups ? 0
                                               : problem.scheme.scales[0].block.cols) {}

  uint8_t code(int64_t at, double x) const {
    return rounding_.code(static_cast<float>(x), scales_[at], offsets_[at]);
  }
  double value(int64_t at, uint8_t code) const {
    return rounding_.value(code, scales_[at], offsets_[at]);
  }

  // The number that the scale of element `at` multiplies.
  double level(int64_t at, uint8_t code) const {
    return rounding_.level(code, offsets_[at]);
  }
  // The scale of row r's block b of columns, and a new one in its place.
  float scale(int64_t r, int64_t b) const { return coded_.scales[0].values[index(r, b)]; }
  void set_scale(int64_t r, int64_t b, float scale) {
    coded_.scales[0].values[index(r, b)] = scale;
    const Block& block = problem_.scheme.scales[0].block;
    const int64_t width = block.kind == Block::Kind::group ? block.cols : coded_.cols;
    const int64_t begin = b * width, end = std::min(coded_.cols, begin + width);
    std::fill(scales_.begin() + r * coded_.cols + begin,
              scales_.begin() + r * coded_.cols + end, scale);
  }

  bool starts_late_group(int64_t column) const {
    return late_group_ > 0 && column % late_group_ == 0;
  }
  // Without static groups: the scale of the group that begins at `column`, from the
  // weights as the solve has left them. row [in].
  void choose_late(int64_t r, int64_t column, const double* row) {
    const int64_t size = std::min(late_group_, coded_.cols - column);
    const std::vector<float> x(row + column, row + column + size);
    const CodedMatrix group = value_or_fail(
        problem_, choose_scales({x.data(), 1, size}, problem_.scheme, problem_.rule,
                                price_.subspan(static_cast<size_t>(column), x.size())));
    const int64_t level = r * coded_.scales[0].cols + column / late_group_;
    coded_.scales[0].values[level] = group.scales[0].values[0];
    if (!group.offsets.empty()) {
      coded_.offsets[0].values[level] = group.offsets[0].values[0];
    }
    const std::vector<float> scales = expanded_scales(group);
    const std::vector<float> offsets = expanded_offsets(group);
    std::copy(scales.begin(), scales.end(), scales_.begin() + r * coded_.cols + column);
    std::copy(offsets.begin(), offsets.end(),
              offsets_.begin() + r * coded_.cols + column);
  }

 private:
  int64_t index(int64_t r, int64_t b) const { return r * coded_.scales[0].cols + b; }

  const LayerProblem& problem_;
  CodedMatrix& coded_;
  std::span<const float> price_;
  Rounding rounding_;
  std::vector<float> scales_, offsets_;
  int64_t late_group_;
};

// Algorithm 1 on rows [first, first + w.rows). w [rows, in] in solving order,
// overwritten.
void solve_rows(const Columns& columns, const at::Tensor& u, Grid& grid, int64_t first,
                at::Tensor w, uint8_t* codes) {
  const int64_t n = columns.count, rows = w.size(0);
  double* weights = w.data_ptr<double>();
  at::Tensor errors = at::empty({rows, kColumns}, at::kDouble);
  double* e = errors.data_ptr<double>();
  for (int64_t begin = 0; begin < n; begin += kColumns) {
    const int64_t end = std::min(n, begin + kColumns);
    for (int64_t r = 0; r < rows; ++r) {
      double* row = weights + r * n;
      const int64_t base = (first + r) * n;
      for (int64_t j = begin; j < end; ++j) {
        if (grid.starts_late_group(j)) grid.choose_late(first + r, j, row);
        const int64_t at = base + columns.order[j];
        codes[at] = grid.code(at, row[j]);
        const double* u_row = columns.u + j * n;
        const double error = (row[j] - grid.value(at, codes[at])) / u_row[j];
        e[r * kColumns + (j - begin)] = error;
        for (int64_t k = j + 1; k < end; ++k) row[k] -= error * u_row[k];
      }
    }
    if (end == n) break;
    w.narrow(1, end, n - end)
        .sub_(at::mm(errors.narrow(1, 0, end - begin),
                     u.narrow(0, begin, end - begin).narrow(1, end, n - end)));
  }
}

// Descent over single codes: with d = w - q, the best value of column j, all others
// fixed, is q_j + (d H)_j / H_jj. Sweeps until nothing changes, at most `sweeps` times. w
// [rows, in] are the weights that the codes stand for, in solving order.
void refine_rows(const Columns& columns, const at::Tensor& h, const Grid& grid,
                 int64_t first, const at::Tensor& w, int sweeps, uint8_t* codes) {
  const int64_t n = columns.count, rows = w.size(0);
  const double* weights = w.data_ptr<double>();
  at::Tensor difference = at::empty_like(w);
  double* d = difference.data_ptr<double>();
  const auto value = [&](int64_t at) { return grid.value(at, codes[at]); };
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < n; ++j) {
      d[r * n + j] = weights[r * n + j] - value((first + r) * n + columns.order[j]);
    }
  }
  at::Tensor gradient = at::mm(difference, h);
  for (int64_t r = 0; r < rows; ++r) {
    double* g = gradient.data_ptr<double>() + r * n;
    for (int sweep = 0; sweep < sweeps; ++sweep) {
      bool changed = false;
      for (int64_t j = 0; j < n; ++j) {
        const int64_t at = (first + r) * n + columns.order[j];
        const double* h_row = columns.h + j * n;
        const double now = value(at);
        const uint8_t code = grid.code(at, now + g[j] / h_row[j]);
        if (code == codes[at]) continue;
        const uint8_t before = codes[at];
        codes[at] = code;
        const double step = value(at) - now;
        // A tie in rounding may leave the objective as it is: only a gain is taken.
        if (step * step * h_row[j] - 2 * step * g[j] >= 0) {
          codes[at] = before;
          continue;
        }
        changed = true;
        for (int64_t k = 0; k < n; ++k) g[k] -= step * h_row[k];
      }
      if (!changed) break;
    }
  }
}

// The columns that share a scale, in solving order, and their rows of H.
struct ScaleBlock {
  at::Tensor columns;  // i64
  at::Tensor h;        // f64 [columns, in]
};

// Blocks whose scales can be moved one by one: one level, of a float element, that
// belongs to a row. Empty for others.
std::vector<ScaleBlock> scale_blocks(const QuantScheme& scheme,
                                     const std::vector<int64_t>& order,
                                     const at::Tensor& h) {
  const Block& block = scheme.scales[0].block;
  const bool grouped = block.kind == Block::Kind::group;
  const bool is_float =
      element_info(scheme.scales[0].element).kind == ElementKind::minifloat &&
      scheme.scales[0].element != Element::e8m0;
  if (scheme.scales.size() != 1 || scheme.scales[0].shifted || !is_float ||
      (!grouped && block.kind != Block::Kind::row)) {
    return {};
  }
  const auto n = static_cast<int64_t>(order.size());
  const int64_t width = grouped ? block.cols : n;
  std::vector<std::vector<int64_t>> columns(static_cast<size_t>((n + width - 1) / width));
  for (int64_t j = 0; j < n; ++j)
    columns[static_cast<size_t>(order[static_cast<size_t>(j)] / width)].push_back(j);
  std::vector<ScaleBlock> blocks;
  for (const std::vector<int64_t>& mine : columns) {
    const at::Tensor index = at::tensor(at::ArrayRef<int64_t>(mine));
    blocks.push_back({index, h.index_select(0, index)});
  }
  return blocks;
}

// Each scale to where the objective is least, codes fixed: with l the levels of a block
// and d = w - s l - .., s moves by (d H l) / (l H l). w as in refine_rows.
void refine_scales(const Columns& columns, const at::Tensor& h,
                   const std::vector<ScaleBlock>& blocks, Grid& grid, Element element,
                   int64_t first, const at::Tensor& w, const uint8_t* codes) {
  const int64_t n = columns.count, rows = w.size(0);
  at::Tensor difference = at::empty_like(w), levels = at::empty_like(w);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < n; ++j) {
      const int64_t at = (first + r) * n + columns.order[static_cast<size_t>(j)];
      difference.data_ptr<double>()[r * n + j] =
          w.data_ptr<double>()[r * n + j] - grid.value(at, codes[at]);
      levels.data_ptr<double>()[r * n + j] = grid.level(at, codes[at]);
    }
  }
  at::Tensor gradient = at::mm(difference, h);
  for (size_t b = 0; b < blocks.size(); ++b) {
    const at::Tensor mine = levels.index_select(1, blocks[b].columns);
    const at::Tensor moved = at::mm(mine, blocks[b].h);  // l H
    const at::Tensor slope = (gradient.index_select(1, blocks[b].columns) * mine).sum(1);
    const at::Tensor curve = (moved.index_select(1, blocks[b].columns) * mine).sum(1);
    at::Tensor steps = at::zeros({rows, 1}, at::kDouble);
    for (int64_t r = 0; r < rows; ++r) {
      const double c = curve.data_ptr<double>()[r], g = slope.data_ptr<double>()[r];
      const float before = grid.scale(first + r, static_cast<int64_t>(b));
      const float after =
          c > 0 ? round_to_element(element, static_cast<float>(before + g / c)) : before;
      const double step = static_cast<double>(after) - before;
      // No more than the half or the double: codes are about to follow.
      const bool sane = after > 0.5f * before && after < 2 * before;
      if (!sane || step == 0 || step * step * c - 2 * step * g >= 0) continue;
      grid.set_scale(first + r, static_cast<int64_t>(b), after);
      steps.data_ptr<double>()[r] = step;
    }
    gradient.sub_(moved * steps);
  }
}

// What a squared rounding error costs after carry-over, by column in original order.
std::vector<float> rounding_price(const Columns& columns) {
  std::vector<float> price(static_cast<size_t>(columns.count));
  for (int64_t i = 0; i < columns.count; ++i) {
    const double u = columns.u[i * columns.count + i];
    price[columns.order[i]] = static_cast<float>(1.0 / (u * u));
  }
  return price;
}

}  // namespace

SolvedLayer solve_gptq(const LayerProblem& problem) {
  const OneThread one_thread;
  const int64_t rows = problem.weight.rows, n = problem.weight.cols;
  if (problem.inputs == nullptr || problem.inputs->tokens() == 0) {
    throw gptq_failure(problem, StatusCode::failed_precondition,
                       "needs calibration inputs; found none; give --calibration");
  }
  if (problem.inputs->columns() != n) {
    throw gptq_failure(
        problem, StatusCode::internal,
        cat("weight has ", n, " columns, its inputs have ", problem.inputs->columns()));
  }

  const std::shared_ptr<const GptqFactor> factor = gptq_factor(problem);
  const Columns columns{factor->order, factor->u.data_ptr<double>(),
                        factor->hessian.data_ptr<double>(), n};
  const std::vector<float> price = rounding_price(columns);
  at::Tensor weight;  // in original order
  const at::Tensor w = target_weights(problem, *factor, weight);
  CodedMatrix coded = value_or_fail(
      problem, choose_scales(MatrixView<const float>(weight.data_ptr<float>(), rows, n),
                             problem.scheme, problem.rule, price));
  weight.reset();
  coded.codes.assign(static_cast<size_t>(rows * n), 0);
  Grid grid(problem, coded, price);
  std::vector<ScaleBlock> blocks;
  if (problem.gptq.refine_scales > 0)
    blocks = scale_blocks(problem.scheme, factor->order, factor->hessian);
  in_parallel((rows + kRows - 1) / kRows, [&](int64_t chunk) {
    const int64_t first = chunk * kRows, count = std::min(kRows, rows - first);
    const at::Tensor target = w.narrow(0, first, count);
    solve_rows(columns, factor->u, grid, first, target.clone(), coded.codes.data());
    refine_rows(columns, factor->hessian, grid, first, target, problem.gptq.refine_sweeps,
                coded.codes.data());
    for (int round = 0; round < (blocks.empty() ? 0 : problem.gptq.refine_scales);
         ++round) {
      refine_scales(columns, factor->hessian, blocks, grid,
                    problem.scheme.scales[0].element, first, target, coded.codes.data());
      refine_rows(columns, factor->hessian, grid, first, target,
                  problem.gptq.refine_sweeps, coded.codes.data());
    }
  });

  std::string note;
  if (factor->damping != problem.gptq.damping) {
    note = cat("damping ", problem.gptq.damping, " -> ", factor->damping);
  }
  if (factor->dead > 0)
    note += cat(note.empty() ? "" : "; ", factor->dead, " dead columns");
  return {std::move(coded), note};
}

}  // namespace nibble
