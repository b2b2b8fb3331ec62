// How far a net's outputs are from a reference's, or from what they should be, on samples
// or streams (recipes/data/signals.h).
//
//   relative error  e = sqrt(sum (y - r)^2 / sum r^2) of an output over all samples
//   snr             -20 log10(e), dB
//   ci95            by bootstrap (recipes/eval/bootstrap.h) over units: a sample, or up
//                   to 32 steps in a row of one stream, whose errors hang together
//
// On streams each net carries its own state, as it will in use. Of outputs that are all
// zero e counts against 1e-30. Sums in double, in a fixed order.
//
// Errors: the executor's; out_of_range: an output that is not finite (names output and
// sample); invalid_argument: outputs of other names or shapes.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/runtime/executor.h"
#include "recipes/data/signals.h"
#include "recipes/eval/bootstrap.h"
#include "recipes/eval/evaluate.h"

namespace nibble {

// Samples or streams that go through a net together, whose values take so many bytes
// each.
int64_t rows_together(int64_t bytes);

struct SignalQuality {
  struct Output {
    std::string name;
    double relative_error = 0, snr = 0;
    Interval relative_error_ci95, snr_ci95;
    double largest_difference = 0, mean_difference = 0;  // of |y - r|
    double largest = 0;                                  // |r|
  };
  std::vector<Output> outputs;
  int64_t samples = 0, units = 0;
  // The mean over outputs of e^2: one figure, less is better.
  double loss() const;
};

// Both nets over the set.
Result<SignalQuality> evaluate_signals(Executor& model, Executor& reference,
                                       const SignalSet& set,
                                       const EvaluationProgress& progress);
// The net against set.targets, the outputs that it has. invalid_argument: it has none.
Result<SignalQuality> evaluate_targets(Executor& model, const SignalSet& set,
                                       const EvaluationProgress& progress);

// What a net sees and gives at every sample of the set.
struct UnrolledSignals {
  SignalRows states;   // [steps, streams, row] of carried inputs, before each step
  SignalRows outputs;  // [steps, streams, row]
};
Result<UnrolledSignals> unroll(Executor& model, const SignalSet& set,
                               const EvaluationProgress& progress);

}  // namespace nibble
