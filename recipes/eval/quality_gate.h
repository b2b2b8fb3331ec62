// What an artifact must reach to be kept as one, and whether it does.
//
// A figure is an estimate: a gate is met when the unfavourable end of its 95 % interval
// (recipes/eval/bootstrap.h) is inside, so that a limit holds with 97.5 % confidence and
// a small sample does not pass by luck. `estimate_meets` says that the figure alone would
// do: then more evaluation data may decide.
//
// invalid_argument, from check_gate: a gate on a figure that this model does not have (a
// KL of images), names the gate.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "recipes/eval/evaluate.h"

namespace nibble {

// 0: not asked for.
struct QualityGate {
  double max_kl = 0;                   // nats a token, against the float model
  double max_perplexity_increase = 0;  // percent over the float model's
  double min_accuracy = 0;             // percent
  bool operator==(const QualityGate&) const = default;
  bool any() const {
    return max_kl > 0 || max_perplexity_increase > 0 || min_accuracy > 0;
  }
};

struct GateResult {
  std::string gate;  // the recipe's key: "max_kl"
  double limit = 0, figure = 0;
  Interval ci95;
  bool at_most = true;  // false: the figure must be at least the limit
  bool estimate_meets() const { return at_most ? figure <= limit : figure >= limit; }
  bool met() const { return at_most ? ci95.high <= limit : ci95.low >= limit; }
};

// Before there are figures: do the gates fit the kind of model?
Status check_gate_kind(const QualityGate& gate, bool language_model);
std::vector<GateResult> check_gate(const QualityGate& gate,
                                   const std::optional<TextQuality>& text,
                                   const std::optional<ImageQuality>& images);
// "max_kl at most 0.01: not met, 0.0123 [0.0118, 0.0129]".
std::string gate_text(const GateResult& result);

}  // namespace nibble
