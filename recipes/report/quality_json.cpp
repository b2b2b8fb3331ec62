#include "recipes/report/quality_json.h"

#include "kernels/base/json.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

void add_with_interval(const char* name, const std::optional<double>& value,
                       const Interval& interval, Json& json) {
  if (!value) return;
  json[name] = *value;
  json[std::string(name) + "_ci95"] = interval_json(interval);
}

std::string with_interval(double value, const Interval& interval, int digits) {
  return cat(number_text(value, digits), " [", number_text(interval.low, digits), ", ",
             number_text(interval.high, digits), "]");
}

}  // namespace

Json interval_json(const Interval& interval) {
  return Json::array({interval.low, interval.high});
}

void add_quality(const TextQuality& quality, Json& json) {
  json["perplexity"] = quality.perplexity;
  json["perplexity_ci95"] = interval_json(quality.perplexity_ci95);
  json["nll"] = quality.nll;
  json["tokens"] = quality.tokens;
  json["sequences"] = quality.sequences;
  add_with_interval("kl", quality.kl, quality.kl_ci95, json);
  add_with_interval("kl_p90", quality.kl_p90, quality.kl_p90_ci95, json);
  add_with_interval("kl_p99", quality.kl_p99, quality.kl_p99_ci95, json);
  add_with_interval("top1_agreement", quality.top1_agreement, quality.top1_agreement_ci95,
                    json);
  add_with_interval("perplexity_increase", quality.perplexity_increase,
                    quality.perplexity_increase_ci95, json);
  // A mean a sequence: two models are compared pair by pair (tests/bench/ptq_peers.py).
  json["sequence_nll"] = quality.sequence_nll;
  if (!quality.sequence_kl.empty()) json["sequence_kl"] = quality.sequence_kl;
  if (quality.positions.empty()) return;
  Json positions = Json::array();
  for (const PositionBucket& bucket : quality.positions) {
    Json entry = {{"begin", bucket.begin},
                  {"end", bucket.end},
                  {"predictions", bucket.predictions},
                  {"perplexity", bucket.perplexity},
                  {"perplexity_ci95", interval_json(bucket.perplexity_ci95)}};
    add_with_interval("kl", bucket.kl, bucket.kl_ci95, entry);
    positions.push_back(std::move(entry));
  }
  json["positions"] = std::move(positions);
}

void add_quality(const ImageQuality& quality, Json& json) {
  json["accuracy"] = quality.accuracy;
  json["accuracy_ci95"] = interval_json(quality.accuracy_ci95);
  json["images"] = quality.images;
  add_with_interval("argmax_agreement", quality.argmax_agreement,
                    quality.argmax_agreement_ci95, json);
}

Json signal_json(const SignalQuality& quality) {
  Json outputs = Json::object();
  for (const SignalQuality::Output& output : quality.outputs) {
    outputs[output.name] = {
        {"relative_error", output.relative_error},
        {"relative_error_ci95", interval_json(output.relative_error_ci95)},
        {"snr_db", output.snr},
        {"snr_db_ci95", interval_json(output.snr_ci95)},
        {"largest_difference", output.largest_difference},
        {"mean_difference", output.mean_difference},
        {"largest", output.largest}};
  }
  return {{"samples", quality.samples}, {"units", quality.units}, {"outputs", outputs}};
}

Json noise_json(const TextNoise& noise) {
  return {{"change", kHarmlessChange},
          {"predictions", noise.tokens},
          {"kl", noise.kl},
          {"kl_p90", noise.kl_p90},
          {"kl_p99", noise.kl_p99},
          {"perplexity_change", noise.perplexity_change},
          {"top1_disagreement", noise.top1_disagreement}};
}

Json noise_json(const ImageNoise& noise) {
  return {{"change", kHarmlessChange},
          {"images", noise.images},
          {"accuracy_change", noise.accuracy_change},
          {"argmax_disagreement", noise.argmax_disagreement}};
}

Json attribution_json(const Attribution& attribution) {
  Json layers = Json::array();
  for (const LayerCost& layer : attribution.layers) {
    layers.push_back({{"layer", layer.layer},
                      {"scheme", layer.scheme},
                      {"kl_cost", layer.cost},
                      {"kl_cost_ci95", interval_json(layer.ci95)}});
  }
  return {{"each", attribution.alone ? "alone quantized" : "alone restored to float"},
          {"kl", attribution.kl},
          {"predictions", attribution.tokens},
          {"sequences", attribution.sequences},
          {"layers", layers}};
}

std::vector<std::vector<std::string>> attribution_rows(const Attribution& attribution) {
  std::vector<std::vector<std::string>> rows = {
      {"layer", "scheme", "KL cost", "of the whole KL"}};
  for (const LayerCost& layer : attribution.layers) {
    rows.push_back({layer.layer, layer.scheme, with_interval(layer.cost, layer.ci95, 3),
                    number_text(layer.cost / attribution.kl * 100, 3) + " %"});
  }
  return rows;
}

Json cache_json(const CacheSize& cache) {
  return {{"scheme", cache.scheme},
          {"positions", cache.positions},
          {"bytes", cache.bytes},
          {"f16_bytes", cache.f16_bytes},
          {"of_f16", cache.of_f16()}};
}

std::vector<std::vector<std::string>> position_rows(
    const std::vector<const Measurement*>& models) {
  const std::vector<PositionBucket>& first = models[0]->text->positions;
  std::vector<std::vector<std::string>> rows = {
      {"positions", "predictions", "perplexity"}};
  for (const PositionBucket& bucket : first) {
    rows.push_back({cat(bucket.begin, " - ", bucket.end - 1), cat(bucket.predictions),
                    with_interval(bucket.perplexity, bucket.perplexity_ci95, 4)});
  }
  for (const Measurement* model : models) {
    const std::vector<PositionBucket>& buckets = model->text->positions;
    if (buckets.size() != first.size() || !buckets[0].kl) continue;
    rows[0].push_back(models.size() == 1 ? "KL, nats a token" : "KL, " + model->name);
    for (size_t i = 0; i < buckets.size(); ++i)
      rows[i + 1].push_back(with_interval(*buckets[i].kl, buckets[i].kl_ci95, 3));
  }
  return rows;
}

std::string noise_text(const TextNoise& noise, const TextQuality* quality) {
  std::string text = cat("KL ", number_text(noise.kl, 2), ", its 99th percentile ",
                         number_text(noise.kl_p99, 2), ", perplexity +-",
                         number_text(noise.perplexity_change * 100, 2), " %, best token ",
                         number_text(noise.top1_disagreement * 100, 2), " % different (",
                         kHarmlessChange, ", ", noise.tokens, " predictions)");
  if (quality != nullptr && noise.covers(*quality))
    text += "; the KL above is not over it: noise";
  return text;
}

std::string noise_text(const ImageNoise& noise, const ImageQuality* quality) {
  std::string text =
      cat("accuracy +-", number_text(noise.accuracy_change * 100, 2), " %, class ",
          number_text(noise.argmax_disagreement * 100, 2), " % different (",
          kHarmlessChange, ", ", noise.images, " images)");
  if (quality != nullptr && noise.covers(*quality))
    text += "; the difference above is not over it: noise";
  return text;
}

}  // namespace nibble
