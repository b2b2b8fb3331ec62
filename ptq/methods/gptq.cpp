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
// H is summed and factored in f64; the solve itself is f32, by the products of ops/gemm.
//
// What is done around it:
//   * the price of rounding column j after carry-over is 1 / U_jj^2 times the squared
//   error:
//     those are the weights of the scale search (rule mse);
//   * group_aware: the groups in the order of their mean diagonal, columns by theirs
//   inside
//     a group, so that a group is solved as a whole (group-aware reordering, as GPTQModel
//     has it) and its scale may be found late, from the weights as the solve left them;
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
#include <memory>
#include <span>

#include "ptq/error.h"
#include "ptq/methods/gptq_factor.h"
#include "ptq/methods/method.h"
#include "ptq/methods/rounding.h"
#include "ptq/module/dense_product.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

// Columns between two updates of all that follow (sec. 3.2), and between two of what is
// left of these: an error is carried over by products, but for the few columns next to
// it.
constexpr int64_t kColumns = 512, kNear = 16;
template <class T>
T value_or_fail(const LayerProblem& problem, Result<T> result) {
  if (!result.ok())
    throw gptq_failure(problem, result.status().code(), result.status().message());
  return std::move(result).value();
}

// Everything that the rows of one layer share, in solving order.
struct Columns {
  const std::vector<int64_t>& order;
  const float* u;  // [in, in]
  const float* h;  // [in, in], damped
  int64_t count;
};

// The scales and offsets of a layer, and the levels that they come from. Where a row's
// blocks have one of each they are kept by block: columns are solved in an order that
// jumps, and element by element would be a cache line each.
class Grid {
 public:
  struct Place {
    float scale, offset;
  };

  Grid(const LayerProblem& problem, CodedMatrix& coded, std::span<const float> price)
      : problem_(problem),
        coded_(coded),
        price_(price),
        rounding_(problem.scheme),
        by_block_(one_of_each(problem.scheme)),
        block_(static_cast<size_t>(coded.cols)),
        late_group_(problem.gptq.static_groups ? 0
                                               : problem.scheme.scales[0].block.cols) {
    const int64_t width = by_block_ ? scale_width() : 1;
    stride_ = (coded.cols + width - 1) / width;
    for (int64_t c = 0; c < coded.cols; ++c) block_[static_cast<size_t>(c)] = c / width;
    scales_ = by_block_ ? coded.scales[0].values : expanded_scales(coded);
    if (by_block_ && coded.offsets.empty()) {
      offsets_.assign(scales_.size(), 0.0f);
    } else {
      offsets_ = by_block_ ? coded.offsets[0].values : expanded_offsets(coded);
    }
  }

  // Of the element in row r and column c, original order.
  Place place(int64_t r, int64_t c) const {
    const auto i = static_cast<size_t>(r * stride_ + block_[static_cast<size_t>(c)]);
    return {scales_[i], offsets_[i]};
  }
  uint8_t code(const Place& place, float x) const {
    return rounding_.code(x, place.scale, place.offset);
  }
  float value(const Place& place, uint8_t code) const {
    return rounding_.value(code, place.scale, place.offset);
  }
  // The number that the scale multiplies.
  float level(const Place& place, uint8_t code) const {
    return rounding_.level(code, place.offset);
  }
  // The scale of row r's block b of columns, and a new one in its place.
  float scale(int64_t r, int64_t b) const { return coded_.scales[0].values[index(r, b)]; }
  void set_scale(int64_t r, int64_t b, float scale) {
    coded_.scales[0].values[index(r, b)] = scale;
    fill(scales_, r, b * scale_width(), scale_width(), scale);
  }

  // Does another group begin at place j of the solving order?
  bool starts_late_group(const std::vector<int64_t>& order, int64_t j) const {
    if (late_group_ == 0) return false;
    const auto group = [&](int64_t place) {
      return order[static_cast<size_t>(place)] / late_group_;
    };
    return j == 0 || group(j) != group(j - 1);
  }
  // Without static groups: the scale of the group that begins at place j, from the
  // weights as the solve has left them. row [in], in solving order.
  void choose_late(int64_t r, const std::vector<int64_t>& order, int64_t j,
                   const float* row) {
    const int64_t column = order[static_cast<size_t>(j)] / late_group_ * late_group_;
    const int64_t size = std::min(late_group_, coded_.cols - column);
    std::vector<float> x(static_cast<size_t>(size));
    for (int64_t i = j; i < j + size; ++i)
      x[static_cast<size_t>(order[static_cast<size_t>(i)] - column)] = row[i];
    const CodedMatrix group = value_or_fail(
        problem_, choose_scales({x.data(), 1, size}, problem_.scheme, problem_.rule,
                                price_.subspan(static_cast<size_t>(column), x.size())));
    const int64_t level = r * coded_.scales[0].cols + column / late_group_;
    coded_.scales[0].values[level] = group.scales[0].values[0];
    if (!group.offsets.empty()) {
      coded_.offsets[0].values[level] = group.offsets[0].values[0];
    }
    fill(scales_, r, column, size, expanded_scales(group)[0]);
    fill(offsets_, r, column, size, expanded_offsets(group)[0]);
  }

 private:
  static bool one_of_each(const QuantScheme& scheme) {
    const ScaleLevel& scale = scheme.scales[0];
    const bool rows =
        scale.block.kind == Block::Kind::row || scale.block.kind == Block::Kind::group;
    const auto alone = [&](const std::vector<ScaleLevel>& levels) {
      return levels.size() == 1 && !levels[0].shifted && levels[0].block == scale.block;
    };
    return rows && alone(scheme.scales) &&
           (scheme.offsets.empty() || alone(scheme.offsets));
  }
  int64_t scale_width() const {
    const Block& block = problem_.scheme.scales[0].block;
    return block.kind == Block::Kind::group ? block.cols : coded_.cols;
  }
  int64_t index(int64_t r, int64_t b) const { return r * coded_.scales[0].cols + b; }
  // Columns [column, column + count) of row r.
  void fill(std::vector<float>& of, int64_t r, int64_t column, int64_t count,
            float value) const {
    const int64_t last = std::min(coded_.cols, column + count) - 1;
    const auto at = [&](int64_t c) {
      return of.begin() + r * stride_ + block_[static_cast<size_t>(c)];
    };
    std::fill(at(column), at(last) + 1, value);
  }

  const LayerProblem& problem_;
  CodedMatrix& coded_;
  std::span<const float> price_;
  Rounding rounding_;
  bool by_block_;
  std::vector<int64_t> block_;  // of a column
  int64_t stride_ = 0;          // blocks of a row
  std::vector<float> scales_, offsets_;
  int64_t late_group_;
};

// Algorithm 1 on rows [first, first + w.rows). w [rows, in] in solving order,
// overwritten.
void solve_rows(const Columns& columns, const at::Tensor& u, Grid& grid, int64_t first,
                at::Tensor w, uint8_t* codes) {
  const int64_t n = columns.count, rows = w.size(0);
  float* weights = w.data_ptr<float>();
  at::Tensor errors = at::empty({rows, kColumns}, at::kFloat);
  float* e = errors.data_ptr<float>();
  for (int64_t begin = 0; begin < n; begin += kColumns) {
    const int64_t end = std::min(n, begin + kColumns);
    // The errors of columns [from, to) to columns [to, until).
    const auto carry_over = [&](int64_t from, int64_t to, int64_t until) {
      if (to == until) return;
      w.narrow(1, to, until - to)
          .sub_(dense_mm(errors.narrow(1, from - begin, to - from),
                         u.narrow(0, from, to - from).narrow(1, to, until - to)));
    };
    for (int64_t near = begin; near < end; near += kNear) {
      const int64_t near_end = std::min(end, near + kNear);
      for (int64_t r = 0; r < rows; ++r) {
        float* row = weights + r * n;
        const int64_t base = (first + r) * n;
        for (int64_t j = near; j < near_end; ++j) {
          if (grid.starts_late_group(columns.order, j))
            grid.choose_late(first + r, columns.order, j, row);
          const Grid::Place place = grid.place(first + r, columns.order[j]);
          const uint8_t code = grid.code(place, row[j]);
          codes[base + columns.order[j]] = code;
          const float* u_row = columns.u + j * n;
          const float error = (row[j] - grid.value(place, code)) / u_row[j];
          e[r * kColumns + (j - begin)] = error;
          for (int64_t k = j + 1; k < near_end; ++k) row[k] -= error * u_row[k];
        }
      }
      carry_over(near, near_end, end);
    }
    carry_over(begin, end, n);
  }
}

// Descent over single codes: with d = w - q, the best value of column j, all others
// fixed, is q_j + (d H)_j / H_jj. Sweeps until nothing changes, at most `sweeps` times. w
// [rows, in] are the weights that the codes stand for, in solving order.
void refine_rows(const Columns& columns, const at::Tensor& h, const Grid& grid,
                 int64_t first, const at::Tensor& w, int sweeps, uint8_t* codes) {
  if (sweeps == 0) return;
  const int64_t n = columns.count, rows = w.size(0);
  const float* weights = w.data_ptr<float>();
  at::Tensor difference = at::empty_like(w);
  float* d = difference.data_ptr<float>();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < n; ++j) {
      const int64_t column = columns.order[j];
      d[r * n + j] = weights[r * n + j] - grid.value(grid.place(first + r, column),
                                                     codes[(first + r) * n + column]);
    }
  }
  at::Tensor gradient = dense_mm(difference, h);
  const at::Tensor own = h.diagonal().contiguous();
  const float* diagonal = own.const_data_ptr<float>();
  for (int64_t r = 0; r < rows; ++r) {
    float* g = gradient.data_ptr<float>() + r * n;
    for (int sweep = 0; sweep < sweeps; ++sweep) {
      bool changed = false;
      for (int64_t j = 0; j < n; ++j) {
        const Grid::Place place = grid.place(first + r, columns.order[j]);
        uint8_t& kept = codes[(first + r) * n + columns.order[j]];
        const float* h_row = columns.h + j * n;
        const float now = grid.value(place, kept);
        const uint8_t code = grid.code(place, now + g[j] / diagonal[j]);
        if (code == kept) continue;
        const float step = grid.value(place, code) - now;
        // A tie in rounding may leave the objective as it is: only a gain is taken.
        if (step * step * diagonal[j] - 2 * step * g[j] >= 0) continue;
        kept = code;
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
  at::Tensor h;        // f32 [columns, in]
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
      const int64_t column = columns.order[static_cast<size_t>(j)];
      const Grid::Place place = grid.place(first + r, column);
      const uint8_t code = codes[(first + r) * n + column];
      difference.data_ptr<float>()[r * n + j] =
          w.data_ptr<float>()[r * n + j] - grid.value(place, code);
      levels.data_ptr<float>()[r * n + j] = grid.level(place, code);
    }
  }
  at::Tensor gradient = dense_mm(difference, h);
  for (size_t b = 0; b < blocks.size(); ++b) {
    const at::Tensor mine = levels.index_select(1, blocks[b].columns);
    const at::Tensor moved = dense_mm(mine, blocks[b].h);  // l H
    const at::Tensor slope = (gradient.index_select(1, blocks[b].columns) * mine).sum(1);
    const at::Tensor curve = (moved.index_select(1, blocks[b].columns) * mine).sum(1);
    at::Tensor steps = at::zeros({rows, 1}, at::kFloat);
    for (int64_t r = 0; r < rows; ++r) {
      const float c = curve.data_ptr<float>()[r], g = slope.data_ptr<float>()[r];
      const float before = grid.scale(first + r, static_cast<int64_t>(b));
      const float after = c > 0 ? round_to_element(element, before + g / c) : before;
      const float step = after - before;
      // No more than the half or the double: codes are about to follow.
      const bool sane = after / before > 0.5f && after / before < 2;
      if (!sane || step == 0 || step * step * c - 2 * step * g >= 0) continue;
      grid.set_scale(first + r, static_cast<int64_t>(b), after);
      steps.data_ptr<float>()[r] = step;
    }
    gradient.addcmul_(moved, steps, -1);
  }
}

// What a squared rounding error costs after carry-over, by column in original order.
std::vector<float> rounding_price(const Columns& columns) {
  std::vector<float> price(static_cast<size_t>(columns.count));
  for (int64_t i = 0; i < columns.count; ++i) {
    const float u = columns.u[i * columns.count + i];
    price[columns.order[i]] = 1 / (u * u);
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
  const Columns columns{factor->order, factor->u.data_ptr<float>(),
                        factor->hessian.data_ptr<float>(), n};
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
  const int64_t size = rows_together(n);
  in_parallel((rows + size - 1) / size, [&](int64_t chunk) {
    const int64_t first = chunk * size, count = std::min(size, rows - first);
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
