// Quality figures with their uncertainty, computed by the runtime on the artifact that
// ships.
//
//   nll         mean over predictions of -log p(next token), nats; perplexity = exp(nll)
//   kl          mean over predictions of sum_v r(v) (log r(v) - log p(v)), nats, r being
//   the
//               reference's probabilities and p this model's
//   agreement   share of predictions (images) whose largest logit is at the same index
//   ci95        [low, high] by bootstrap over sequences (images): 2,000 resamples, fixed
//   seed
//
// log p = logit - log sum exp, in double; sums in a fixed order, so that the thread count
// does not matter. Errors: the executor's; out_of_range: a logit that is not finite
// (names sequence and position); invalid_argument: nothing to evaluate, or models of
// different vocabularies.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/runtime/executor.h"

namespace nibble {

struct Interval {
  double low = 0, high = 0;
};
struct TextQuality {
  double nll = 0, perplexity = 0;
  Interval perplexity_ci95;
  int64_t tokens = 0;  // predictions
  int64_t sequences = 0;
  std::optional<double> kl, top1_agreement;
  Interval kl_ci95;
  std::vector<double> sequence_nll, sequence_kl;  // means, one a sequence
};
// Each sequence alone; predictions 1 .. length-1. reference may be null.
Result<TextQuality> evaluate_text(
    Executor& model, Executor* reference,
    const std::vector<std::vector<int32_t>>& sequences,
    const std::function<void(int64_t done, int64_t total)>& progress);

struct ImageQuality {
  double accuracy = 0;
  Interval accuracy_ci95;
  int64_t images = 0;
  std::optional<double> argmax_agreement;
  std::vector<int32_t> predictions;
};
struct ImageSet;  // recipes/data/images.h
Result<ImageQuality> evaluate_images(
    Executor& model, Executor* reference, const ImageSet& images,
    const std::function<void(int64_t done, int64_t total)>& progress);

// [low, high] of the mean of values weighted by weights.
Interval bootstrap_ci95(const std::vector<double>& values,
                        const std::vector<double>& weights);

// The figures of one prediction. next: the token that came; reference may be null.
struct Prediction {
  double nll = 0, kl = 0;
  bool agrees = false;  // with the reference's largest logit
  bool finite = true;   // every logit of both; the other figures mean nothing otherwise
};
Prediction score_prediction(const float* logits, const float* reference,
                            int64_t vocabulary, int32_t next);

}  // namespace nibble
