// Round to nearest: scales from the weight alone, then every weight to its nearest code.
#include "ptq/error.h"
#include "ptq/methods/method.h"

namespace nibble {

SolvedLayer solve_rtn(const LayerProblem& problem) {
  const auto fail = [&](const Status& status) {
    return Error(
        Status(status.code(), cat("[rtn] ", problem.node, ": ", status.message())));
  };
  Result<CodedMatrix> coded = choose_scales(problem.weight, problem.scheme, problem.rule);
  if (!coded.ok()) throw fail(coded.status());
  const Status status = quantize(problem.weight, *coded);
  if (!status.ok()) throw fail(status);
  return {.coded = std::move(coded).value(), .note = ""};
}

}  // namespace nibble
