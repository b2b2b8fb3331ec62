#include "ptq/methods/gptq_factor.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ptq/methods/inverse_factor.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 32, kTargetRows = 64;  // made together

// The order in which columns are solved: order[i] is the column that comes i-th.
std::vector<int64_t> column_order(const at::Tensor& diagonal, bool act_order) {
  std::vector<int64_t> order(static_cast<size_t>(diagonal.size(0)));
  std::iota(order.begin(), order.end(), 0);
  if (act_order) {
    const double* d = diagonal.data_ptr<double>();
    std::stable_sort(order.begin(), order.end(),
                     [d](int64_t a, int64_t b) { return d[a] > d[b]; });
  }
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
  in_parallel((n + kRows - 1) / kRows, [&](int64_t part) {
    for (int64_t i = part * kRows; i < std::min(n, (part + 1) * kRows); ++i) {
      const double* row = from + order[i] * n;
      for (int64_t k = 0; k < n; ++k) to[i * n + k] = row[order[k]];
      to[i * n + i] = own[order[i]] + added;
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
  factor->order = column_order(diagonal, problem.gptq.act_order);
  factor->damping = problem.gptq.damping;
  for (int attempt = 0;; ++attempt, factor->damping *= 10) {
    factor->hessian = damped(hessian, factor->order, diagonal, factor->damping * mean);
    factor->u = factor->hessian.clone();
    if (inverse_factor(factor->u)) return factor;
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
      cat("gptq ", gptq.damping, " ", gptq.damping_attempts, " ", gptq.act_order),
      [&problem] { return make_factor(problem); });
}

at::Tensor target_weights(const LayerProblem& problem, const GptqFactor& factor,
                          at::Tensor& original) {
  const int64_t rows = problem.weight.rows, n = problem.weight.cols;
  const bool moves = problem.gptq.match_float && problem.inputs->has_drift();
  at::Tensor targets = at::empty({rows, n}, at::kDouble);
  original = at::empty({rows, n}, at::kFloat);
  in_parallel((rows + kTargetRows - 1) / kTargetRows, [&](int64_t chunk) {
    const int64_t first = chunk * kTargetRows,
                  count = std::min(kTargetRows, rows - first);
    const at::Tensor plain = at::empty({count, n}, at::kFloat);
    for (int64_t r = 0; r < count; ++r) {
      std::copy_n(problem.weight.row(first + r), n, plain.data_ptr<float>() + r * n);
    }
    const at::Tensor w = plain.to(at::kDouble);
    const auto in_order = [&](const at::Tensor& from, double* to) {
      const double* x = from.data_ptr<double>();
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t k = 0; k < n; ++k) to[r * n + k] = x[r * n + factor.order[k]];
      }
    };
    at::Tensor target = targets.narrow(0, first, count);
    double* t = target.data_ptr<double>();
    in_order(w, t);
    if (moves) {
      at::Tensor moved = at::empty_like(w);
      in_order(at::mm(w, problem.inputs->drift()), moved.data_ptr<double>());
      target.add_(at::mm(at::mm(moved, factor.u.t()), factor.u));  // U^T U = H^-1
    }
    float* out = original.data_ptr<float>() + first * n;
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t k = 0; k < n; ++k) {
        out[r * n + factor.order[k]] = static_cast<float>(t[r * n + k]);
      }
    }
  });
  return targets;
}

}  // namespace nibble
