// The stations that quantize and train share: request, model, data, measurement, report.
// They need no LibTorch themselves.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/runtime/executor.h"
#include "recipes/data/images.h"
#include "recipes/data/signals.h"
#include "recipes/data/text.h"
#include "recipes/eval/signal_quality.h"
#include "recipes/torch/pipeline.h"

namespace nibble {

// Text, images or values of a net's inputs that belong to one model.
struct RunData {
  std::vector<std::vector<int32_t>> sequences;
  ImageSet images;
  SignalSet signals;
  UnrolledSignals seen;  // training: what the teacher makes of the signals
  std::string description;
  // Where it was cut from: for the attestation.
  std::filesystem::path file;
  TextOptions options;
  int64_t first = 0;  // of the file's sequences
  bool is_signals() const { return signals.count() > 0; }
  bool is_text() const { return images.count == 0 && !is_signals(); }
  int64_t count() const {
    return is_signals() ? signals.count()
           : is_text()  ? static_cast<int64_t>(sequences.size())
                        : images.count;
  }
  const char* unit() const {
    return is_signals() ? "samples" : is_text() ? "sequences" : "images";
  }
};

// already_exists / invalid_argument: the output is there, or the recipe is of a kind that
// this verb does not take.
Status check_request(const PipelineRequest& request, const char* verb,
                     const std::vector<std::string>& kinds);

// The model in float. invalid_argument: it is quantized already.
Result<Artifact> load_float_model(const PipelineRequest& request, const char* verb,
                                  bool initialise);

// request path -> sequences of at most `length` tokens, the images of a split, the first
// most_images of them (0: all), or of a net over values the samples of a safetensors
// file.
Result<RunData> load_run_data(const PipelineRequest& request, const Artifact& model,
                              const std::filesystem::path& path, int64_t length,
                              Split split, int64_t most_images);

// Held-out data for the report: --evaluation, else the last sequences of `data` from
// `used` on (taken out of it), else the test images beside the training images. Empty
// with the reason in description when there are none.
Result<RunData> held_out_data(const PipelineRequest& request, const Artifact& model,
                              RunData& data, int64_t used, int64_t length);

// An executor as the recipe evaluates; kv: what caches are stored as, "" as the model says.
Result<Executor> make_executor(const PipelineRequest& request,
                               std::shared_ptr<const Artifact> model,
                               const std::string& kv = "");

// Quality and speed of both into report.before and report.after. before may be null (a
// model that began as noise is no reference).
Status measure_models(const PipelineRequest& request,
                      std::shared_ptr<const Artifact> before,
                      std::shared_ptr<const Artifact> after, const RunData& data,
                      RunReport& report);

// Names, settings, notes that every report has.
RunReport begin_report(const PipelineRequest& request, const char* verb);
Status read_compared(const PipelineRequest& request, RunReport& report);

// Which kernel serves each layer here, into the ledger.
Status record_kernels(Artifact& artifact);

// The recipe's kv into the artifact's states. invalid_argument: an image model.
Status set_kv_schemes(const PipelineRequest& request, Artifact& artifact);

// The gates against what was measured; the artifact to output, or to output.rejected with
// nothing at output. failed_precondition: gates, and nothing to measure them on.
// The gates alone, and where the artifact goes.
std::filesystem::path decide_output(const PipelineRequest& request, RunReport& report);
Status finish_artifact(const PipelineRequest& request, const Artifact& artifact,
                       RunReport& report);
Status check_gate_data(const PipelineRequest& request, const Artifact& model,
                       const RunData& data, const char* verb);

// What measure_models found, as proof.json in a finished directory; nothing where it did not
// run.
Status write_proof(const RunReport& report, const Artifact& artifact,
                   const std::filesystem::path& directory);

// report.html and measurements.json; of a training also its course (training_log.h).
std::map<std::string, std::string> report_files(const RunReport& report);

// One of several processes that fails takes the others along: they would wait for it.
Result<RunReport> or_all_end(Result<RunReport> report);

}  // namespace nibble
