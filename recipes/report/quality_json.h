// Quality figures as JSON and as table cells: one spelling for evaluate, for reports and
// for measurements.json.
//
//   perplexity perplexity_ci95 nll tokens sequences
//   kl kl_p90 kl_p99 top1_agreement perplexity_increase, each with _ci95
//   positions: [{begin, end, predictions, perplexity, perplexity_ci95, kl, kl_ci95}]
//   accuracy accuracy_ci95 images argmax_agreement argmax_agreement_ci95
//   signals, targets: {samples, units, outputs: {NAME: {relative_error snr_db, each with
//     _ci95, largest_difference mean_difference largest}}}
//   noise_floor: {change, predictions | images, ...}
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "recipes/report/run_report.h"

namespace nibble {

nlohmann::json interval_json(const Interval& interval);
void add_quality(const TextQuality& quality, nlohmann::json& json);
void add_quality(const ImageQuality& quality, nlohmann::json& json);
nlohmann::json signal_json(const SignalQuality& quality);
nlohmann::json noise_json(const TextNoise& noise);
nlohmann::json noise_json(const ImageNoise& noise);

nlohmann::json attribution_json(const Attribution& attribution);
std::vector<std::vector<std::string>> attribution_rows(const Attribution& attribution);
nlohmann::json cache_json(const CacheSize& cache);

// Rows of a table: positions, predictions, the first model's perplexity and every model's
// KL, with their intervals.
std::vector<std::vector<std::string>> position_rows(
    const std::vector<const Measurement*>& models);

// What the noise floor says of a figure, one line: "noise floor  KL 1.2e-12 ...".
std::string noise_text(const TextNoise& noise, const TextQuality* quality);
std::string noise_text(const ImageNoise& noise, const ImageQuality* quality);

}  // namespace nibble
