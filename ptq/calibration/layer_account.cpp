#include "ptq/calibration/layer_account.h"

#include <cstdio>

#include "ptq/methods/low_rank.h"

namespace nibble {
namespace {

// As measurements print: three figures.
std::string short_text(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g", value);
  return text;
}

}  // namespace

Calibrated::Account layer_account(const LayerProblem& problem, const std::string& method,
                                  const SolvedLayer& solved,
                                  const LowRankFactors* factors) {
  const bool is_nearest = method == "rtn";
  const int64_t rows = problem.weight.rows, cols = problem.weight.cols;
  std::vector<std::vector<float>> values = {dequantized(solved.coded)};
  if (!is_nearest) values.push_back(dequantized(solve_rtn(problem).coded));
  if (factors != nullptr) {
    values.push_back(values[0]);
    add_factors(*factors, {values.back().data(), rows, cols});
  }
  std::vector<MatrixView<const float>> views;
  for (const std::vector<float>& each : values)
    views.push_back({each.data(), rows, cols});
  const std::vector<LayerError> errors =
      layer_errors(problem.weight, views, problem.inputs);
  const LayerError& coded = errors[0];
  const LayerError& nearest = errors[is_nearest ? 0 : 1];
  const LayerError& whole = factors != nullptr ? errors.back() : coded;
  Calibrated::Account account{.tokens = problem.inputs ? problem.inputs->tokens() : 0,
                              .error = whole.weight,
                              .output_error = whole.output,
                              .rtn_error = nearest.weight,
                              .rtn_output_error = nearest.output,
                              .note = solved.note};
  if (factors == nullptr) return account;
  const bool outputs = problem.inputs != nullptr;
  const std::string note =
      cat("rank ", factors->a.rows(), outputs ? ": output error " : ": weight error ",
          short_text(outputs ? coded.output : coded.weight), " -> ",
          short_text(outputs ? whole.output : whole.weight));
  account.note += (account.note.empty() ? "" : "; ") + note;
  return account;
}

}  // namespace nibble
