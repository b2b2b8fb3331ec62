// Round to nearest under scales that mind what the inputs are: the squared error of each
// column counts as much as its inputs' second moment (the "importance matrix" of
// llama.cpp).
//
//   s = argmin sum_c E[x_c^2] (w_c - Q(w_c; s))^2     over shrink factors of absmax
#include <ATen/ATen.h>

#include "ptq/error.h"
#include "ptq/methods/method.h"

namespace nibble {

SolvedLayer solve_imatrix(const LayerProblem& problem) {
  const auto fail = [&](StatusCode code, const std::string& message) {
    return Error(Status(code, cat("[imatrix] ", problem.node, ": ", message)));
  };
  if (problem.inputs == nullptr || problem.inputs->tokens() == 0) {
    throw fail(StatusCode::failed_precondition,
               "needs calibration inputs; found none; give --calibration");
  }
  const at::Tensor moments = problem.inputs->matrix().diagonal().to(at::kFloat);
  const double mean = moments.mean(at::kDouble).item<double>();
  // A column that never saw an input still has a say, a small one.
  const at::Tensor importance =
      (moments / (mean > 0 ? mean : 1)).clamp_min(1e-6).contiguous();
  ScaleRule rule = problem.rule;
  rule.kind = ScaleRule::Kind::mse;
  Result<CodedMatrix> coded = choose_scales(
      problem.weight, problem.scheme, rule,
      {importance.data_ptr<float>(), static_cast<size_t>(importance.size(0))});
  if (!coded.ok()) throw fail(coded.status().code(), coded.status().message());
  const Status status = quantize(problem.weight, *coded);
  if (!status.ok()) throw fail(status.code(), status.message());
  return {.coded = std::move(coded).value(), .note = ""};
}

}  // namespace nibble
