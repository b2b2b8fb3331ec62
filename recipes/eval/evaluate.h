// Quality figures with their uncertainty, computed by the runtime on the artifact that
// ships.
//
//   nll         mean over predictions of -log p(next token), nats; perplexity = exp(nll)
//   kl          mean over predictions of sum_v r(v) (log r(v) - log p(v)), nats, r being
//               the reference's probabilities and p this model's
//   kl_p90, p99 nearest-rank percentiles of the same over single predictions
//   agreement   share of predictions (images) whose largest logit is at the same index
//   increase    exp(mean of this nll - the reference's nll) - 1, the perplexity's growth;
//               paired: both models meet the same resamples
//   ci95        [low, high] by bootstrap over sequences (images):
//   recipes/eval/bootstrap.h position p  the prediction of token p + 1 from tokens 0 .. p
//
// log p = logit - log sum exp, in double; sums in a fixed order, so that the thread count
// does not matter. At most 64 MiB of logits a model are held at a time, whatever the text
// and the vocabulary; of a prediction only its KL stays (4 bytes).
// Errors: the executor's; out_of_range: a logit that is not finite (names sequence and
// position); invalid_argument: nothing to evaluate, or models of different vocabularies.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/runtime/executor.h"
#include "recipes/eval/bootstrap.h"
#include "recipes/eval/text_model.h"

namespace nibble {

using EvaluationProgress = std::function<void(int64_t done, int64_t total)>;

// Predictions at positions [begin, end) of every sequence: error by position, drift.
struct PositionBucket {
  int64_t begin = 0, end = 0;
  int64_t predictions = 0;
  double perplexity = 0;
  Interval perplexity_ci95;
  std::optional<double> kl;
  Interval kl_ci95;
};

struct TextQuality {
  double nll = 0, perplexity = 0;
  Interval perplexity_ci95;
  int64_t tokens = 0;  // predictions
  int64_t sequences = 0;
  // With a reference.
  std::optional<double> kl, kl_p90, kl_p99, top1_agreement;
  Interval kl_ci95, kl_p90_ci95, kl_p99_ci95, top1_agreement_ci95;
  std::optional<double> perplexity_increase;  // a fraction: 0.01 is one percent
  Interval perplexity_increase_ci95;
  std::vector<double> sequence_nll, sequence_kl;  // means, one a sequence
  std::vector<double> sequence_weights;           // their predictions
  std::vector<double> reference_nll, sequence_agreement;
  std::vector<PositionBucket> positions;  // 16 at most, of equal width
};
// Each sequence alone; predictions 1 .. length-1. reference may be null. counted_from:
// empty, or for each sequence the first token whose prediction counts (the ones before it
// are context that an earlier window has predicted).
Result<TextQuality> evaluate_text(TextModel& model, TextModel* reference,
                                  const std::vector<std::vector<int32_t>>& sequences,
                                  const EvaluationProgress& progress,
                                  const std::vector<int64_t>& counted_from = {});
Result<TextQuality> evaluate_text(Executor& model, Executor* reference,
                                  const std::vector<std::vector<int32_t>>& sequences,
                                  const EvaluationProgress& progress,
                                  const std::vector<int64_t>& counted_from = {});

// What the same pass tells of the reference itself: nll and perplexity.
TextQuality reference_quality(const TextQuality& quality);

struct ImageQuality {
  double accuracy = 0;
  Interval accuracy_ci95;
  int64_t images = 0;
  std::optional<double> argmax_agreement;
  Interval argmax_agreement_ci95;
  std::vector<int32_t> predictions;
  std::vector<double> right, agrees;  // 1 or 0 an image; agrees: with a reference
};
struct ImageSet;  // recipes/data/images.h
Result<ImageQuality> evaluate_images(Executor& model, Executor* reference,
                                     const ImageSet& images,
                                     const EvaluationProgress& progress);

// The figures of one prediction. next: the token that came; reference may be null.
struct Prediction {
  double nll = 0, kl = 0;
  double reference_nll = 0;
  bool agrees = false;  // with the reference's largest logit
  bool finite = true;   // every logit of both; the other figures mean nothing otherwise
};
Prediction score_prediction(const float* logits, const float* reference,
                            int64_t vocabulary, int32_t next);

// Rows of logits that are held at a time.
int64_t logit_rows(int64_t vocabulary);

}  // namespace nibble
