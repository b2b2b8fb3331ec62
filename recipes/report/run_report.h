// What a run of quantize or train found out, in one value: the final table, --json and
// report.html are three views of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "export/validate/attestation.h"
#include "kernels/artifact/artifact.h"
#include "recipes/eval/attribution.h"
#include "recipes/eval/embeddings.h"
#include "recipes/eval/evaluate.h"
#include "recipes/eval/kernel_speed.h"
#include "recipes/eval/layer_speed.h"
#include "recipes/eval/noise_floor.h"
#include "recipes/eval/quality_gate.h"
#include "recipes/eval/signal_quality.h"
#include "recipes/eval/speed.h"

namespace nibble {

// A KV cache of the whole context.
struct CacheSize {
  std::string scheme;  // of the first state: "int8n/g64@f16", "KEYS,VALUES"
  int64_t positions = 0;
  int64_t bytes = 0;
  int64_t f16_bytes = 0;  // what f16 would take
  double of_f16() const {
    return static_cast<double>(bytes) / static_cast<double>(f16_bytes);
  }
};

// One model's figures. Absent: not measured (RunReport::evaluation says why).
struct Measurement {
  std::string name;                      // "float", "w4a16-gptq"
  std::string curve;  // its sweep, "mixed-gptq by mixed.bits"; empty: none
  int64_t bytes = 0;                     // weights, scales and offsets counted
  double bits_per_weight = 0;            // over all parameters
  double quantized_bits_per_weight = 0;  // over the quantized layers; 0: none
  std::optional<CacheSize> cache;        // language models
  std::optional<TextQuality> text;
  std::optional<ImageQuality> images;
  std::optional<EmbeddingQuality> embeddings;  // of this model beside the float one's
  std::optional<SignalQuality> signals;        // likewise, a net's outputs
  std::optional<SignalQuality> targets;        // of what the data says they should be
  std::optional<Speed> speed;
};

// What the executor's cache for the model's whole context takes. Nothing for models
// without one.
std::optional<CacheSize> measure_cache(const Executor& model);
bool has_quantized_cache(const Executor& model);
std::string cache_text(const CacheSize& cache);  // "int8n/g64@f16, 1.08 MB, 0.516 of f16"

// Size and bits of a model, no quality yet. Scales and offsets are counted.
Measurement measure_size(const Artifact& model, const std::string& name);

struct LossPoint {
  int64_t step = 0;
  double loss = 0;
  double learning_rate = 0;
  double gradient_norm = 0;
};
// The artifact's own figure, where a training looked at it: KL, or the share of errors.
struct FigurePoint {
  int64_t step = 0;
  double figure = 0;
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
  std::optional<TextNoise> text_noise;  // the float model's noise floor
  std::optional<ImageNoise> image_noise;
  std::vector<GateResult> gates;  // the recipe's, with their outcomes
  bool rejected = false;          // one of them is not met; output says where it lies
  std::optional<Attribution> attribution;
  std::vector<Measurement> parts;    // the artifact with part of what it does undone
  std::vector<Measurement> others;   // earlier artifacts of the same model, for the plot
  Ledger ledger;                     // empty for a float model
  std::vector<LossPoint> loss;       // train only
  std::vector<FigurePoint> figures;  // train only
  std::vector<LayerSpeed> layers;    // bench only
  KernelSpeeds kernels;              // bench --kernels only: then there are no models
  // Outputs and figures for proof.json; files and tensors are added when it is written.
  std::optional<Attestation> proof;
  std::vector<std::string> notes;
  std::vector<std::string> costs;  // time and memory of this run; not in report.html
  int64_t peak_memory = 0, predicted_memory = 0;  // quantize; bytes, 0: not known
  std::vector<std::pair<std::string, int64_t>> memory_parts;  // of the predicted
  double calibration_seconds = 0;
  double training_seconds = 0;  // of its steps alone, in this run
};

// ok, or rejected: the gates that are not met, and where the artifact lies.
Status gate_status(const RunReport& report);

// Label, then one cell a model; the first row has their names. Speeds are not in it.
std::vector<std::vector<std::string>> measurement_rows(
    const std::vector<const Measurement*>& models);

// The final table, as plain text of at most 100 columns.
std::string print_report(const RunReport& report);

// A self-contained page. Only bench's holds times and speeds: of the other verbs equal
// inputs give equal bytes.
std::string report_html(const RunReport& report);

// What --json prints: one object.
std::string report_json(const RunReport& report);

// measurements.json beside an artifact: what a later report plots. data_loss: not such a
// file.
std::string print_measurement(const Measurement& measurement);
Result<Measurement> parse_measurement(const std::string& json, const std::string& where);

}  // namespace nibble
