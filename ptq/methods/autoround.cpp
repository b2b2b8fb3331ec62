// AutoRound, first half: the codes that a block's tuning starts from. The second half is
// ptq/calibration/block_tuner.h, which calibrate() runs once all layers of a block have
// theirs.
#include "ptq/calibration/block_tuner.h"
#include "ptq/error.h"
#include "ptq/methods/method.h"

namespace nibble {

SolvedLayer solve_autoround(const LayerProblem& problem) {
  if (const char* why = cannot_tune(problem.scheme)) {
    throw Error(error(StatusCode::invalid_argument, "[autoround] ", problem.node,
                      ": integer codes under one float scale a group, row or tensor are "
                      "required; found ",
                      to_string(problem.scheme), ": ", why, "; use gptq for this layer"));
  }
  if (problem.autoround.start == "gptq") return solve_gptq(problem);
  return problem.autoround.start == "imatrix" ? solve_imatrix(problem)
                                              : solve_rtn(problem);
}

}  // namespace nibble
