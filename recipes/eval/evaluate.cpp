#include "recipes/eval/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kernels/base/cancel.h"
#include "kernels/base/parallel.h"
#include "recipes/data/images.h"

namespace nibble {
namespace {

constexpr int64_t kMostLogits = int64_t{1} << 24;  // held at a time: 64 MiB of floats
constexpr int64_t kImageBatch = 100;
constexpr int64_t kBuckets =
    16;  // of positions: enough to see a drift, few enough to read

struct Largest {
  int64_t index = 0;
  float value = 0;
  bool finite = true;
};
// The first of the largest values.
Largest largest(const float* values, int64_t count) {
  Largest out{0, values[0], true};
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    finite &= std::isfinite(values[i]);
    if (values[i] > out.value) out.value = values[i], out.index = i;
  }
  out.finite = finite;
  return out;
}

double log_sum_exp(const float* logits, int64_t count, float maximum) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i)
    sum += std::exp(static_cast<double>(logits[i]) - static_cast<double>(maximum));
  return static_cast<double>(maximum) + std::log(sum);
}

// A sequence's predictions under one model, a run of rows at a time: forward(begin,
// count) fills `logits` [count, vocabulary] for positions begin ...
class SequenceRunner {
 public:
  static Result<SequenceRunner> create(TextModel& model, int64_t longest) {
    SequenceRunner runner(model);
    NIBBLE_RETURN_IF_ERROR(model.open(longest));
    const int64_t vocabulary = model.artifact().program.vocabulary;
    runner.logits_.resize(
        static_cast<size_t>(std::min(logit_rows(vocabulary), longest) * vocabulary));
    return runner;
  }
  void begin() { model_->begin(); }
  Status forward(std::span<const int32_t> tokens) {
    const int64_t vocabulary = model_->artifact().program.vocabulary;
    return model_->forward(
        tokens, {logits_.data(), static_cast<int64_t>(tokens.size()), vocabulary});
  }
  const float* row(int64_t r) const {
    return logits_.data() + r * model_->artifact().program.vocabulary;
  }

 private:
  explicit SequenceRunner(TextModel& model) : model_(&model) {}
  TextModel* model_;
  std::vector<float> logits_;
};

// The sums of one sequence over the positions of each bucket.
struct BucketSums {
  std::vector<double> nll, kl, count;
};

// Powers of two, so that a bucket's borders are round numbers.
int64_t bucket_width(int64_t longest) {
  int64_t width = 1;
  while (width * kBuckets < longest) width *= 2;
  return width;
}

std::vector<PositionBucket> position_buckets(const std::vector<BucketSums>& sequences,
                                             int64_t width, int64_t longest,
                                             bool with_kl) {
  std::vector<PositionBucket> buckets(static_cast<size_t>((longest + width - 1) / width));
  parallel_for(static_cast<int64_t>(buckets.size()), [&](int64_t i) {
    PositionBucket& bucket = buckets[static_cast<size_t>(i)];
    bucket.begin = i * width;
    bucket.end = std::min(longest, bucket.begin + width);
    std::vector<double> nll, kl, weights;
    double count = 0;
    for (const BucketSums& sums : sequences) {
      const size_t b = static_cast<size_t>(i);
      const double n = b < sums.count.size() ? sums.count[b] : 0;
      if (n == 0) continue;
      weights.push_back(n);
      nll.push_back(sums.nll[b] / n);
      kl.push_back(sums.kl[b] / n);
      count += n;
    }
    bucket.predictions = static_cast<int64_t>(count);
    if (weights.empty()) return;
    bucket.perplexity = std::exp(weighted_mean(nll, weights));
    const Interval interval = bootstrap_ci95(nll, weights);
    bucket.perplexity_ci95 = {std::exp(interval.low), std::exp(interval.high)};
    if (!with_kl) return;
    bucket.kl = weighted_mean(kl, weights);
    bucket.kl_ci95 = bootstrap_ci95(kl, weights);
  });
  // With overlapping windows the first positions of a short text may count nothing.
  std::erase_if(buckets, [](const PositionBucket& b) { return b.predictions == 0; });
  return buckets;
}

void set_perplexity(const std::vector<double>& nll, const std::vector<double>& weights,
                    TextQuality& quality) {
  quality.nll = weighted_mean(nll, weights);
  quality.perplexity = std::exp(quality.nll);
  const Interval interval = bootstrap_ci95(nll, weights);
  quality.perplexity_ci95 = {std::exp(interval.low), std::exp(interval.high)};
}

int64_t classes_of(const Program& program) {
  return program.outputs.empty() || program.outputs[0].shape.empty()
             ? 0
             : std::atoll(program.outputs[0].shape.back().c_str());
}

}  // namespace

int64_t logit_rows(int64_t vocabulary) {
  return std::max<int64_t>(1, kMostLogits / vocabulary);
}

Prediction score_prediction(const float* logits, const float* reference,
                            int64_t vocabulary, int32_t next) {
  Prediction out;
  const Largest top = largest(logits, vocabulary);
  out.finite = top.finite;
  const double lse = log_sum_exp(logits, vocabulary, top.value);
  out.nll = lse - static_cast<double>(logits[next]);
  if (!reference) return out;
  const Largest reference_top = largest(reference, vocabulary);
  out.finite = out.finite && reference_top.finite;
  out.agrees = top.index == reference_top.index;
  const double reference_lse = log_sum_exp(reference, vocabulary, reference_top.value);
  out.reference_nll = reference_lse - static_cast<double>(reference[next]);
  for (int64_t v = 0; v < vocabulary; ++v) {
    const double log_r = static_cast<double>(reference[v]) - reference_lse;
    const double log_p = static_cast<double>(logits[v]) - lse;
    out.kl += std::exp(log_r) * (log_r - log_p);
  }
  return out;
}

Result<TextQuality> evaluate_text(Executor& model, Executor* reference,
                                  const std::vector<std::vector<int32_t>>& sequences,
                                  const EvaluationProgress& progress,
                                  const std::vector<int64_t>& counted_from) {
  const std::unique_ptr<TextModel> other =
      reference == nullptr ? nullptr : text_model(*reference);
  return evaluate_text(*text_model(model), other.get(), sequences, progress,
                       counted_from);
}

Result<TextQuality> evaluate_text(TextModel& model, TextModel* reference,
                                  const std::vector<std::vector<int32_t>>& sequences,
                                  const EvaluationProgress& progress,
                                  const std::vector<int64_t>& counted_from) {
  const int64_t vocabulary = model.artifact().program.vocabulary;
  if (vocabulary <= 0)
    return error(
        StatusCode::invalid_argument, "[evaluate] ",
        model.artifact().program.architecture,
        ": a language model was required for text; this is not one; give images");
  if (reference && reference->artifact().program.vocabulary != vocabulary)
    return error(StatusCode::invalid_argument, "[evaluate] reference: a model of ",
                 vocabulary, " tokens, as this one, was required; found ",
                 reference->artifact().program.vocabulary,
                 "; give the model that this one was made from");
  size_t longest = 0;
  for (const auto& sequence : sequences) {
    if (sequence.size() < 2)
      return error(
          StatusCode::invalid_argument,
          "[evaluate] sequences: at least 2 tokens each were required; found one of ",
          sequence.size(), "; leave it out");
    longest = std::max(longest, sequence.size());
  }
  if (sequences.empty())
    return error(
        StatusCode::invalid_argument,
        "[evaluate] sequences: at least one was required; found none; give more text");

  if (!counted_from.empty() && counted_from.size() != sequences.size())
    return error(StatusCode::invalid_argument,
                 "[evaluate] counted_from: one entry a sequence was required; found ",
                 counted_from.size(), " for ", sequences.size(), " sequences");

  // The last token is only predicted.
  const int64_t longest_input = static_cast<int64_t>(longest) - 1;
  NIBBLE_ASSIGN_OR_RETURN(SequenceRunner runner,
                          SequenceRunner::create(model, longest_input));
  std::optional<SequenceRunner> other;
  if (reference) {
    NIBBLE_ASSIGN_OR_RETURN(other, SequenceRunner::create(*reference, longest_input));
  }
  TextQuality quality;
  quality.sequences = static_cast<int64_t>(sequences.size());
  const int64_t width = bucket_width(longest_input);
  const int64_t step = logit_rows(vocabulary);
  std::vector<double>& weights = quality.sequence_weights;
  std::vector<std::vector<float>> kls;
  std::vector<BucketSums> buckets;
  std::vector<Prediction> predictions;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const std::span<const int32_t> tokens(sequences[s]);
    const int64_t count = static_cast<int64_t>(tokens.size()) - 1;
    const int64_t from = counted_from.empty() ? 0 : counted_from[s] - 1;
    if (from < 0 || from >= count)
      return error(StatusCode::invalid_argument, "[evaluate] sequence ", s,
                   ": counting from token 1 to ", count, " was required; found ",
                   from + 1);
    predictions.assign(static_cast<size_t>(count), {});
    runner.begin();
    if (other) other->begin();
    for (int64_t begin = 0; begin < count; begin += step) {
      NIBBLE_RETURN_IF_ERROR(check_cancelled("evaluate"));
      const int64_t rows = std::min(step, count - begin);
      const auto part =
          tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(rows));
      NIBBLE_RETURN_IF_ERROR(runner.forward(part));
      if (other) NIBBLE_RETURN_IF_ERROR(other->forward(part));
      parallel_for(rows, [&](int64_t r) {
        if (begin + r < from) return;
        predictions[static_cast<size_t>(begin + r)] =
            score_prediction(runner.row(r), other ? other->row(r) : nullptr, vocabulary,
                             tokens[static_cast<size_t>(begin + r + 1)]);
      });
    }
    double nll = 0, kl = 0, reference_nll = 0, agreed = 0;
    BucketSums sums;
    sums.nll.resize(static_cast<size_t>((count + width - 1) / width));
    sums.kl = sums.count = sums.nll;
    std::vector<float> sequence_kls;
    for (size_t i = static_cast<size_t>(from); i < predictions.size(); ++i) {
      const Prediction& prediction = predictions[i];
      if (!prediction.finite)
        return error(
            StatusCode::out_of_range, "[evaluate] sequence ", s, " position ", i,
            ": finite logits were required; found NaN or infinity; the weights or scales "
            "of the model are wrong, run nibble validate");
      nll += prediction.nll;
      kl += prediction.kl;
      reference_nll += prediction.reference_nll;
      agreed += prediction.agrees;
      const size_t b = i / static_cast<size_t>(width);
      sums.nll[b] += prediction.nll;
      sums.kl[b] += prediction.kl;
      sums.count[b] += 1;
      if (reference) sequence_kls.push_back(static_cast<float>(prediction.kl));
    }
    const double counted = static_cast<double>(count - from);
    weights.push_back(counted);
    buckets.push_back(std::move(sums));
    quality.tokens += count - from;
    quality.sequence_nll.push_back(nll / counted);
    if (reference) {
      quality.sequence_kl.push_back(kl / counted);
      quality.reference_nll.push_back(reference_nll / counted);
      quality.sequence_agreement.push_back(agreed / counted);
      kls.push_back(std::move(sequence_kls));
    }
    if (progress) progress(static_cast<int64_t>(s) + 1, quality.sequences);
  }
  set_perplexity(quality.sequence_nll, weights, quality);
  quality.positions =
      position_buckets(buckets, width, longest_input, reference != nullptr);
  if (!reference) return quality;
  quality.kl = weighted_mean(quality.sequence_kl, weights);
  quality.kl_ci95 = bootstrap_ci95(quality.sequence_kl, weights);
  quality.top1_agreement = weighted_mean(quality.sequence_agreement, weights);
  quality.top1_agreement_ci95 = bootstrap_ci95(quality.sequence_agreement, weights);
  const std::vector<Percentile> tails = percentiles(kls, {0.9, 0.99});
  quality.kl_p90 = tails[0].value;
  quality.kl_p90_ci95 = tails[0].ci95;
  quality.kl_p99 = tails[1].value;
  quality.kl_p99_ci95 = tails[1].ci95;
  std::vector<double> growth;
  for (size_t s = 0; s < sequences.size(); ++s)
    growth.push_back(quality.sequence_nll[s] - quality.reference_nll[s]);
  quality.perplexity_increase = std::expm1(weighted_mean(growth, weights));
  const Interval grown = bootstrap_ci95(growth, weights);
  quality.perplexity_increase_ci95 = {std::expm1(grown.low), std::expm1(grown.high)};
  return quality;
}

TextQuality reference_quality(const TextQuality& quality) {
  TextQuality reference;
  reference.tokens = quality.tokens;
  reference.sequences = quality.sequences;
  reference.sequence_nll = quality.reference_nll;
  reference.sequence_weights = quality.sequence_weights;
  set_perplexity(reference.sequence_nll, reference.sequence_weights, reference);
  return reference;
}

Result<ImageQuality> evaluate_images(Executor& model, Executor* reference,
                                     const ImageSet& images,
                                     const EvaluationProgress& progress) {
  const int64_t classes = classes_of(model.artifact().program);
  if (classes <= 0 || model.artifact().program.is_language_model())
    return error(StatusCode::invalid_argument, "[evaluate] ",
                 model.artifact().program.architecture,
                 ": a classifier of images was required; this is not one; give text");
  if (reference && classes_of(reference->artifact().program) != classes)
    return error(StatusCode::invalid_argument, "[evaluate] reference: a model of ",
                 classes, " classes, as this one, was required; found ",
                 classes_of(reference->artifact().program),
                 "; give the model that this one was made from");
  if (images.count == 0)
    return error(
        StatusCode::invalid_argument,
        "[evaluate] images: at least one was required; found none; give a data set");

  const int64_t pixels = images.channels * images.height * images.width;
  const int64_t batch = std::min(kImageBatch, images.count);
  std::vector<float> input(static_cast<size_t>(batch * pixels));
  std::vector<float> logits(static_cast<size_t>(batch * classes));
  const auto predict = [&](Executor& executor, int64_t first, int64_t count,
                           std::vector<int32_t>& out) -> Status {
    preprocess(images, first, count, executor.artifact().image_mean,
               executor.artifact().image_std, input.data());
    const int64_t shape[] = {count, images.channels, images.height, images.width};
    NIBBLE_RETURN_IF_ERROR(
        executor.forward_images({input.data(), static_cast<size_t>(count * pixels)},
                                shape, MatrixView<float>(logits.data(), count, classes)));
    for (int64_t i = 0; i < count; ++i) {
      const Largest top = largest(logits.data() + i * classes, classes);
      if (!top.finite)
        return error(
            StatusCode::out_of_range, "[evaluate] image ", first + i,
            ": finite logits were required; found NaN or infinity; the weights or scales "
            "of the model are wrong, run nibble validate");
      out.push_back(static_cast<int32_t>(top.index));
    }
    return ok_status();
  };

  ImageQuality quality;
  quality.images = images.count;
  std::vector<int32_t> reference_predictions;
  for (int64_t first = 0; first < images.count; first += kImageBatch) {
    NIBBLE_RETURN_IF_ERROR(check_cancelled("evaluate"));
    const int64_t count = std::min(kImageBatch, images.count - first);
    NIBBLE_RETURN_IF_ERROR(predict(model, first, count, quality.predictions));
    if (reference)
      NIBBLE_RETURN_IF_ERROR(predict(*reference, first, count, reference_predictions));
    if (progress) progress(first + count, images.count);
  }
  for (size_t i = 0; i < quality.predictions.size(); ++i) {
    quality.right.push_back(quality.predictions[i] == images.labels[i] ? 1.0 : 0.0);
    if (reference)
      quality.agrees.push_back(quality.predictions[i] == reference_predictions[i] ? 1.0
                                                                              : 0.0);
  }
  const std::vector<double> weights(quality.right.size(), 1.0);
  quality.accuracy = weighted_mean(quality.right, weights);
  quality.accuracy_ci95 = bootstrap_ci95(quality.right, weights);
  if (reference) {
    quality.argmax_agreement = weighted_mean(quality.agrees, weights);
    quality.argmax_agreement_ci95 = bootstrap_ci95(quality.agrees, weights);
  }
  return quality;
}

}  // namespace nibble
