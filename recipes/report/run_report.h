// What a run of quantize or train found out, in one value: the final table, --json and
// report.html are three views of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "recipes/eval/embeddings.h"
#include "recipes/eval/evaluate.h"
#include "recipes/eval/speed.h"

namespace nibble {

// One model's figures. Absent: not measured (RunReport::evaluation says why).
struct Measurement {
  std::string name;                      // "float", "w4a16-gptq"
  int64_t bytes = 0;                     // weights, scales and offsets counted
  double bits_per_weight = 0;            // over all parameters
  double quantized_bits_per_weight = 0;  // over the quantized layers; 0: none
  std::optional<TextQuality> text;
  std::optional<ImageQuality> images;
  std::optional<EmbeddingQuality> embeddings;  // of this model beside the float one's
  std::optional<Speed> speed;
};

// Size and bits of a model, no quality yet. Scales and offsets are counted.
Measurement measure_size(const Artifact& model, const std::string& name);

struct LossPoint {
  int64_t step = 0;
  double loss = 0;
  double learning_rate = 0;
};

struct RunReport {
  std::string verb;   // "quantize", "train"
  std::string model;  // file or folder name, without its path
  std::string output;
  std::string recipe_name;
  std::string recipe;       // every resolved setting, as YAML
  std::string calibration;  // what it was calibrated on; "" when nothing
  std::string evaluation;   // what the figures were measured on, or why there are none
  std::optional<Measurement> before;
  Measurement after;
  std::vector<Measurement> others;  // earlier artifacts of the same model, for the plot
  Ledger ledger;                    // empty for a float model
  std::vector<LossPoint> loss;      // train only
  std::vector<std::string> notes;
};

// Label, then one cell a model; the first row has their names. Speeds are not in it.
std::vector<std::vector<std::string>> measurement_rows(
    const std::vector<const Measurement*>& models);

// The final table, as plain text of at most 100 columns.
std::string print_report(const RunReport& report);

// A self-contained page. It holds neither times nor speeds: equal inputs give equal
// bytes.
std::string report_html(const RunReport& report);

// What --json prints: one object.
std::string report_json(const RunReport& report);

// measurements.json beside an artifact: what a later report plots. data_loss: not such a
// file.
std::string print_measurement(const Measurement& measurement);
Result<Measurement> parse_measurement(const std::string& json, const std::string& where);

}  // namespace nibble
