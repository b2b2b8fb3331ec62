#include "recipes/eval/attribution.h"

#include <algorithm>

#include "kernels/base/cancel.h"
#include "kernels/base/parallel.h"
#include "kernels/runtime/kv_cache.h"

namespace nibble {
namespace {

template <class... Parts>
Status wrong(const Parts&... parts) {
  return error(StatusCode::invalid_argument, "[attribute] ", parts...);
}

// The mean KL of one sequence's predictions. KL needs no next token.
Result<double> mean_kl(const std::vector<float>& reference,
                       const std::vector<float>& logits, int64_t rows,
                       int64_t vocabulary) {
  std::vector<Prediction> predictions(static_cast<size_t>(rows));
  parallel_for(rows, [&](int64_t r) {
    predictions[static_cast<size_t>(r)] = score_prediction(
        logits.data() + r * vocabulary, reference.data() + r * vocabulary, vocabulary, 0);
  });
  double sum = 0;
  for (const Prediction& prediction : predictions) {
    if (!prediction.finite)
      return error(
          StatusCode::out_of_range,
          "[attribute] logits: finite ones were required; found NaN or infinity; "
          "run nibble validate");
    sum += prediction.kl;
  }
  return sum / static_cast<double>(rows);
}

}  // namespace

Result<Attribution> attribute_layers(Executor& quantized, Executor& reference,
                                     const std::vector<std::vector<int32_t>>& sequences,
                                     bool alone, const EvaluationProgress& progress) {
  const Artifact& model = quantized.artifact();
  const Artifact& floats = reference.artifact();
  const int64_t vocabulary = model.program.vocabulary;
  if (!model.program.is_language_model())
    return wrong(model.program.architecture,
                 ": a language model was required; found one of images");
  if (!model.is_quantized())
    return wrong(model.program.architecture,
                 ": a quantized artifact was required; found no quantized layer");
  if (sequences.empty()) return wrong("sequences: at least one was required; found none");

  Attribution result;
  result.alone = alone;
  std::vector<size_t> stages;
  for (const auto& [name, packed] : model.packed) {
    const auto plain = floats.tensors.find(name);
    if (plain == floats.tensors.end() || plain->second.rows() != packed.rows ||
        plain->second.cols() != packed.cols)
      return wrong(name, ": the reference must have the layer in float, [", packed.rows,
                   ", ", packed.cols,
                   "]; found none; give the model that this one was made from");
    NIBBLE_ASSIGN_OR_RETURN(const size_t stage, quantized.stage_of(name));
    stages.push_back(stage);
    result.layers.push_back({name, to_string(packed.scheme), 0, {}});
  }
  Executor& base = alone ? reference : quantized;
  const Artifact& other = alone ? model : floats;

  const int64_t most = logit_rows(vocabulary);
  std::vector<std::vector<double>> costs(result.layers.size());
  std::vector<double> weights, kls;
  std::vector<float> truth, logits;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int64_t rows = std::min(most, static_cast<int64_t>(sequences[s].size()) - 1);
    if (rows < 1) continue;
    const std::span<const int32_t> tokens(sequences[s].data(), static_cast<size_t>(rows));
    truth.resize(static_cast<size_t>(rows * vocabulary));
    logits.resize(truth.size());
    const MatrixView<float> all(logits.data(), rows, vocabulary);
    NIBBLE_ASSIGN_OR_RETURN(const auto reference_cache, reference.make_cache(rows));
    NIBBLE_ASSIGN_OR_RETURN(const auto model_cache, quantized.make_cache(rows));
    KvCache& cache = alone ? *reference_cache : *model_cache;
    BlockInputs kept;
    if (alone) {
      NIBBLE_RETURN_IF_ERROR(reference.forward_keeping(
          tokens, *reference_cache, {truth.data(), rows, vocabulary}, kept));
      NIBBLE_RETURN_IF_ERROR(quantized.forward(tokens, *model_cache, all));
    } else {
      NIBBLE_RETURN_IF_ERROR(
          reference.forward(tokens, *reference_cache, {truth.data(), rows, vocabulary}));
      NIBBLE_RETURN_IF_ERROR(quantized.forward_keeping(tokens, *model_cache, all, kept));
    }
    NIBBLE_ASSIGN_OR_RETURN(const double whole, mean_kl(truth, logits, rows, vocabulary));
    kls.push_back(whole);
    weights.push_back(static_cast<double>(rows));
    result.tokens += rows;
    for (size_t i = 0; i < result.layers.size(); ++i) {
      NIBBLE_RETURN_IF_ERROR(check_cancelled("attribute"));
      NIBBLE_RETURN_IF_ERROR(base.exchange_layer(result.layers[i].layer, &other));
      cache.truncate(0);
      const Status status = base.forward_from(stages[i], kept, tokens, cache, all);
      NIBBLE_RETURN_IF_ERROR(base.exchange_layer(result.layers[i].layer, nullptr));
      NIBBLE_RETURN_IF_ERROR(status);
      NIBBLE_ASSIGN_OR_RETURN(const double kl, mean_kl(truth, logits, rows, vocabulary));
      costs[i].push_back(alone ? kl : whole - kl);
    }
    if (progress)
      progress(static_cast<int64_t>(s) + 1, static_cast<int64_t>(sequences.size()));
  }
  if (weights.empty())
    return wrong("sequences: one of at least 2 tokens was required; found none");
  result.sequences = static_cast<int64_t>(weights.size());
  result.kl = weighted_mean(kls, weights);
  for (size_t i = 0; i < result.layers.size(); ++i) {
    result.layers[i].cost = weighted_mean(costs[i], weights);
    result.layers[i].ci95 = bootstrap_ci95(costs[i], weights);
  }
  std::stable_sort(
      result.layers.begin(), result.layers.end(),
      [](const LayerCost& a, const LayerCost& b) { return a.cost > b.cost; });
  return result;
}

}  // namespace nibble
