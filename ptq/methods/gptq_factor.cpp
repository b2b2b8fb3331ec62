#include "ptq/methods/gptq_factor.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ptq/methods/inverse_factor.h"
#include "ptq/module/dense_product.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

// Columns whose scale is one; 0: all of a row's. Only an order by groups asks.
int64_t group_width(const LayerProblem& problem) {
  const Block& block = problem.scheme.scales[0].block;
  const bool groups = problem.gptq.act_order && problem.gptq.group_aware;
  return groups && block.kind == Block::Kind::group ? block.cols : 0;
}

// The order in which columns are solved: order[i] is the column that comes i-th. With
// groups of `width`: groups by their mean, one that is cut short last, so that the others
// keep to blocks of columns.
std::vector<int64_t> column_order(const at::Tensor& diagonal, bool act_order,
                                  int64_t width) {
  const int64_t n = diagonal.size(0);
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  if (!act_order) return order;
  const double* d = diagonal.data_ptr<double>();
  std::vector<double> mean(static_cast<size_t>(n), 0);  // of a column's group
  for (int64_t begin = 0; width > 0 && begin < n; begin += width) {
    const int64_t end = begin + width;
    const double sum = end <= n ? std::accumulate(d + begin, d + end, 0.0) : -1;
    std::fill(mean.begin() + begin, mean.begin() + std::min(n, end), sum);
  }
  const auto group = [width](int64_t column) { return width > 0 ? column / width : 0; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    if (group(a) == group(b)) return d[a] > d[b];
    return mean[a] != mean[b] ? mean[a] > mean[b] : group(a) < group(b);
  });
  return order;
}

// H in solving order, its diagonal raised. A column of zeros gets the mean diagonal, so
// that nothing is carried to or from it and its weights are rounded to nearest.
at::Tensor damped(const at::Tensor& hessian, const std::vector<int64_t>& order,
                  const at::Tensor& diagonal, double added) {
  const int64_t n = hessian.size(0);
  at::Tensor result = at::empty_like(hessian);
  const double* from = hessian.data_ptr<double>();
  const double* own = diagonal.data_ptr<double>();
  double* to = result.data_ptr<double>();
  const int64_t size = rows_together(n);
  in_parallel((n + size - 1) / size, [&](int64_t part) {
    for (int64_t i = part * size; i < std::min(n, (part + 1) * size); ++i) {
      const double* row = from + order[i] * n;
      for (int64_t k = 0; k < n; ++k) to[i * n + k] = row[order[k]];
      to[i * n + i] = own[order[i]] + added;
    }
  });
  return result;
}

// f32, its columns in solving order.
at::Tensor ordered_columns(const at::Tensor& matrix, const std::vector<int64_t>& order) {
  const int64_t rows = matrix.size(0), n = matrix.size(1);
  at::Tensor result = at::empty({rows, n}, at::kFloat);
  const double* from = matrix.const_data_ptr<double>();
  float* to = result.mutable_data_ptr<float>();
  const int64_t size = rows_together(n);
  in_parallel((rows + size - 1) / size, [&](int64_t part) {
    for (int64_t i = part * size; i < std::min(rows, (part + 1) * size); ++i) {
      for (int64_t k = 0; k < n; ++k)
        to[i * n + k] = static_cast<float>(from[i * n + order[static_cast<size_t>(k)]]);
    }
  });
  return result;
}

std::shared_ptr<const GptqFactor> make_factor(const LayerProblem& problem) {
  const at::Tensor hessian = problem.inputs->matrix();
  at::Tensor diagonal = hessian.diagonal().clone();
  double mean = diagonal.mean().item<double>();
  if (!std::isfinite(mean)) {
    throw gptq_failure(
        problem, StatusCode::out_of_range,
        "the Hessian must be finite; found NaN or infinity; check the weights "
        "before this layer and the calibration data");
  }
  auto factor = std::make_shared<GptqFactor>();
  double* d = diagonal.data_ptr<double>();
  for (int64_t i = 0; i < diagonal.size(0); ++i) {
    if (d[i] > 0) continue;
    d[i] = mean > 0 ? mean : 1.0;
    ++factor->dead;
  }
  mean = diagonal.mean().item<double>();
  factor->order = column_order(diagonal, problem.gptq.act_order, group_width(problem));
  factor->damping = problem.gptq.damping;
  for (int attempt = 0;; ++attempt, factor->damping *= 10) {
    at::Tensor u = damped(hessian, factor->order, diagonal, factor->damping * mean);
    factor->hessian = u.to(at::kFloat);
    if (inverse_factor(u)) {
      factor->u = u.to(at::kFloat);
      u.reset();
      if (problem.gptq.match_float && problem.inputs->has_drift())
        factor->drift = ordered_columns(problem.inputs->drift(), factor->order);
      return factor;
    }
    if (attempt + 1 >= problem.gptq.damping_attempts) break;
  }
  throw gptq_failure(problem, StatusCode::failed_precondition,
                     cat("Hessian not positive definite at damping ", factor->damping,
                         "; raise damping or give more than ", problem.inputs->tokens(),
                         " calibration rows"));
}

}  // namespace

Error gptq_failure(const LayerProblem& problem, StatusCode code,
                   const std::string& message) {
  return Error(Status(code, cat("[gptq] ", problem.node, ": ", message)));
}

std::shared_ptr<const GptqFactor> gptq_factor(const LayerProblem& problem) {
  const GptqOptions& gptq = problem.gptq;
  return problem.inputs->derived<GptqFactor>(
      cat("gptq ", gptq.damping, " ", gptq.damping_attempts, " ", gptq.act_order, " ",
          group_width(problem), " ", gptq.match_float),
      [&problem] { return make_factor(problem); });
}

at::Tensor target_weights(const LayerProblem& problem, const GptqFactor& factor,
                          at::Tensor& original) {
  const int64_t rows = problem.weight.rows, n = problem.weight.cols;
  at::Tensor targets = at::empty({rows, n}, at::kFloat);
  original = at::empty({rows, n}, at::kFloat);
  const int64_t size = rows_together(n);
  in_parallel((rows + size - 1) / size, [&](int64_t chunk) {
    const int64_t first = chunk * size, count = std::min(size, rows - first);
    at::Tensor target = targets.narrow(0, first, count);
    const at::Tensor w = original.narrow(0, first, count);
    float* const t = target.data_ptr<float>();
    float* const plain = w.data_ptr<float>();
    for (int64_t r = 0; r < count; ++r) {
      std::copy_n(problem.weight.row(first + r), n, plain + r * n);
      for (int64_t k = 0; k < n; ++k) t[r * n + k] = plain[r * n + factor.order[k]];
    }
    if (factor.drift.defined()) {
      // U^T U = H^-1
      target.add_(dense_mm(dense_mm(dense_mm(w, factor.drift), factor.u.t()), factor.u));
    }
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t k = 0; k < n; ++k) plain[r * n + factor.order[k]] = t[r * n + k];
    }
  });
  return targets;
}

}  // namespace nibble
