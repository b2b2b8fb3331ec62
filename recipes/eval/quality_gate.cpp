#include "recipes/eval/quality_gate.h"

#include "recipes/report/text_table.h"

namespace nibble {

Status check_gate_kind(const QualityGate& gate, bool language_model) {
  const auto wrong = [](const char* key, const char* wanted, const char* found) {
    return error(StatusCode::invalid_argument, "[gate] ", key, ": ", wanted,
                 " is required; found ", found, "; leave the gate out");
  };
  if (language_model && gate.min_accuracy > 0)
    return wrong("min_accuracy", "a classifier of images", "a language model");
  if (!language_model && gate.max_kl > 0)
    return wrong("max_kl", "a language model", "a model of images");
  if (!language_model && gate.max_perplexity_increase > 0)
    return wrong("max_perplexity_increase", "a language model", "a model of images");
  return ok_status();
}

std::vector<GateResult> check_gate(const QualityGate& gate,
                                   const std::optional<TextQuality>& text,
                                   const std::optional<ImageQuality>& images) {
  std::vector<GateResult> results;
  if (gate.max_kl > 0 && text && text->kl)
    results.push_back({"max_kl", gate.max_kl, *text->kl, text->kl_ci95, true});
  if (gate.max_perplexity_increase > 0 && text && text->perplexity_increase) {
    const Interval& ci = text->perplexity_increase_ci95;
    results.push_back({"max_perplexity_increase",
                       gate.max_perplexity_increase,
                       *text->perplexity_increase * 100,
                       {ci.low * 100, ci.high * 100},
                       true});
  }
  if (gate.min_accuracy > 0 && images) {
    const Interval& ci = images->accuracy_ci95;
    results.push_back({"min_accuracy",
                       gate.min_accuracy,
                       images->accuracy * 100,
                       {ci.low * 100, ci.high * 100},
                       false});
  }
  return results;
}

std::string gate_text(const GateResult& result) {
  std::string text =
      cat(result.gate, result.at_most ? " at most " : " at least ",
          number_text(result.limit, 4), ": ", result.met() ? "met" : "not met", ", ",
          number_text(result.figure, 4), " [", number_text(result.ci95.low, 4), ", ",
          number_text(result.ci95.high, 4), "]");
  if (!result.met() && result.estimate_meets())
    text +=
        "; the estimate is inside but its interval is not: more evaluation data may "
        "decide";
  return text;
}

}  // namespace nibble
