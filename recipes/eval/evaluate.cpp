#include "recipes/eval/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kernels/base/cancel.h"
#include "kernels/base/parallel.h"
#include "kernels/base/splitmix64.h"
#include "kernels/runtime/kv_cache.h"
#include "recipes/data/images.h"

namespace nibble {
namespace {

constexpr int kResamples = 2000;
constexpr uint64_t kBootstrapSeed = 20;
constexpr int64_t kMostLogits = int64_t{1} << 24;  // held at a time: 64 MiB of floats
constexpr int64_t kImageBatch = 100;

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

int64_t rows_at_a_time(int64_t vocabulary) {
  return std::max<int64_t>(1, kMostLogits / vocabulary);
}

// A sequence's predictions under one model, a run of rows at a time: forward(begin,
// count) fills `logits` [count, vocabulary] for positions begin ...
class SequenceRunner {
 public:
  static Result<SequenceRunner> create(Executor& model, int64_t longest) {
    SequenceRunner runner(model);
    NIBBLE_ASSIGN_OR_RETURN(runner.cache_, model.make_cache(longest));
    const int64_t vocabulary = model.artifact().program.vocabulary;
    runner.logits_.resize(
        static_cast<size_t>(std::min(rows_at_a_time(vocabulary), longest) * vocabulary));
    return runner;
  }
  void begin() { cache_->truncate(0); }
  Status forward(std::span<const int32_t> tokens) {
    const int64_t vocabulary = model_->artifact().program.vocabulary;
    return model_->forward(
        tokens, *cache_,
        {logits_.data(), static_cast<int64_t>(tokens.size()), vocabulary});
  }
  const float* row(int64_t r) const {
    return logits_.data() + r * model_->artifact().program.vocabulary;
  }

 private:
  explicit SequenceRunner(Executor& model) : model_(&model) {}
  Executor* model_;
  std::unique_ptr<KvCache> cache_;
  std::vector<float> logits_;
};

double weighted_mean(const std::vector<double>& values,
                     const std::vector<double>& weights) {
  double sum = 0, total = 0;
  for (size_t i = 0; i < values.size(); ++i)
    sum += values[i] * weights[i], total += weights[i];
  return sum / total;
}

int64_t classes_of(const Program& program) {
  return program.outputs.empty() || program.outputs[0].shape.empty()
             ? 0
             : std::atoll(program.outputs[0].shape.back().c_str());
}

}  // namespace

Interval bootstrap_ci95(const std::vector<double>& values,
                        const std::vector<double>& weights) {
  if (values.empty()) return {};
  SplitMix64 random(kBootstrapSeed);
  std::vector<double> means(kResamples);
  for (double& mean : means) {
    double sum = 0, total = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t drawn = static_cast<size_t>(random.below(values.size()));
      sum += values[drawn] * weights[drawn];
      total += weights[drawn];
    }
    mean = sum / total;
  }
  std::sort(means.begin(), means.end());
  constexpr size_t kTail = kResamples / 40;  // 2.5 % on either side
  return {means[kTail], means[kResamples - 1 - kTail]};
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
  for (int64_t v = 0; v < vocabulary; ++v) {
    const double log_r = static_cast<double>(reference[v]) - reference_lse;
    const double log_p = static_cast<double>(logits[v]) - lse;
    out.kl += std::exp(log_r) * (log_r - log_p);
  }
  return out;
}

Result<TextQuality> evaluate_text(Executor& model, Executor* reference,
                                  const std::vector<std::vector<int32_t>>& sequences,
                                  const std::function<void(int64_t, int64_t)>& progress) {
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
  std::vector<double> weights;
  std::vector<Prediction> predictions;
  int64_t agreed = 0;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const std::span<const int32_t> tokens(sequences[s]);
    const int64_t count = static_cast<int64_t>(tokens.size()) - 1;
    predictions.assign(static_cast<size_t>(count), {});
    runner.begin();
    if (other) other->begin();
    const int64_t step = rows_at_a_time(vocabulary);
    for (int64_t begin = 0; begin < count; begin += step) {
      NIBBLE_RETURN_IF_ERROR(check_cancelled("evaluate"));
      const int64_t rows = std::min(step, count - begin);
      const auto part =
          tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(rows));
      NIBBLE_RETURN_IF_ERROR(runner.forward(part));
      if (other) NIBBLE_RETURN_IF_ERROR(other->forward(part));
      parallel_for(rows, [&](int64_t r) {
        predictions[static_cast<size_t>(begin + r)] =
            score_prediction(runner.row(r), other ? other->row(r) : nullptr, vocabulary,
                             tokens[static_cast<size_t>(begin + r + 1)]);
      });
    }
    double nll = 0, kl = 0;
    for (size_t i = 0; i < predictions.size(); ++i) {
      if (!predictions[i].finite)
        return error(
            StatusCode::out_of_range, "[evaluate] sequence ", s, " position ", i,
            ": finite logits were required; found NaN or infinity; the weights or scales "
            "of the model are wrong, run nibble validate");
      nll += predictions[i].nll;
      kl += predictions[i].kl;
      agreed += predictions[i].agrees;
    }
    weights.push_back(static_cast<double>(count));
    quality.tokens += count;
    quality.sequence_nll.push_back(nll / static_cast<double>(count));
    if (reference) quality.sequence_kl.push_back(kl / static_cast<double>(count));
    if (progress) progress(static_cast<int64_t>(s) + 1, quality.sequences);
  }
  quality.nll = weighted_mean(quality.sequence_nll, weights);
  quality.perplexity = std::exp(quality.nll);
  const Interval nll = bootstrap_ci95(quality.sequence_nll, weights);
  quality.perplexity_ci95 = {std::exp(nll.low), std::exp(nll.high)};
  if (reference) {
    quality.kl = weighted_mean(quality.sequence_kl, weights);
    quality.kl_ci95 = bootstrap_ci95(quality.sequence_kl, weights);
    quality.top1_agreement =
        static_cast<double>(agreed) / static_cast<double>(quality.tokens);
  }
  return quality;
}

Result<ImageQuality> evaluate_images(
    Executor& model, Executor* reference, const ImageSet& images,
    const std::function<void(int64_t, int64_t)>& progress) {
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
  std::vector<float> input(static_cast<size_t>(kImageBatch * pixels));
  std::vector<float> logits(static_cast<size_t>(kImageBatch * classes));
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
  std::vector<double> right;
  int64_t agreed = 0;
  for (size_t i = 0; i < quality.predictions.size(); ++i) {
    right.push_back(quality.predictions[i] == images.labels[i] ? 1.0 : 0.0);
    if (reference) agreed += quality.predictions[i] == reference_predictions[i];
  }
  const std::vector<double> weights(right.size(), 1.0);
  quality.accuracy = weighted_mean(right, weights);
  quality.accuracy_ci95 = bootstrap_ci95(right, weights);
  if (reference)
    quality.argmax_agreement =
        static_cast<double>(agreed) / static_cast<double>(images.count);
  return quality;
}

}  // namespace nibble
