#include "recipes/torch/streamed_run.h"

#include <c10/core/Device.h>

#include <utility>

#include "kernels/base/file.h"
#include "kernels/base/memory.h"
#include "kernels/program/program.h"
#include "ptq/calibration/bias_correction.h"
#include "ptq/distributed/ranks.h"
#include "ptq/error.h"
#include "recipes/report/text_table.h"
#include "recipes/torch/device.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string duration_text(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 60) return cat(whole, " s");
  if (whole < 3600) return cat(whole / 60, " min ", whole % 60, " s");
  return cat(whole / 3600, " h ", whole % 3600 / 60, " min");
}

constexpr double kNoteEvery = 5;  // seconds
constexpr const char* kCorrected = "corrected";
constexpr const char* kReady = "ready";
constexpr const char* kAnother =
    "an interrupted run of another request was there: begins anew";

// OUTPUT.run, whatever way OUTPUT is written ("dir/" too).
fs::path work_folder(const fs::path& output) {
  fs::path path = output.lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  return path += ".run";
}

}  // namespace

void remove_finished_work(const fs::path& output) {
  const fs::path work = work_folder(output);
  std::error_code failed;
  const bool has_its_place =
      fs::exists(work / kReady, failed) && !fs::exists(work / kCorrected, failed);
  if (has_its_place || !fs::exists(work / "artifact", failed))
    fs::remove_all(work, failed);
}

StreamedRun::StreamedRun(const PipelineRequest& request,
                         std::shared_ptr<const Artifact> model, const Plan& plan,
                         const CalibrationData& data, const MemoryPlan& memory)
    : request_(request),
      model_(std::move(model)),
      plan_(plan),
      data_(data),
      memory_(memory),
      work_(work_folder(request.output)) {}

StreamedRun::~StreamedRun() {
  writer_.reset();
  std::error_code ignored;
  if (owns_work_ && !keeps_work_) fs::remove_all(work_, ignored);
}

// Of everything that decides a byte of the weights.
std::string StreamedRun::fingerprint(const Provenance& provenance,
                                     const Plan& plan) const {
  Sha256 hash;
  const auto add = [&hash](const std::string& text) {
    hash.update(text.data(), text.size() + 1);  // the 0 parts one from the next
  };
  add(kToolVersion);
  add(print_program(model_->program));
  add(provenance.recipe);
  for (const auto& [file, sum] : provenance.sources) add(cat(file, " ", sum));
  for (const LayerPlan& layer : plan.layers)
    add(cat(layer.tensor, " ", layer.method, " ", to_string(layer.scheme.weight)));
  add(cat(plan.calibration_sequences, " ", plan.calibration_length));
  for (const std::string& transform : plan.transforms) add(transform);
  add(at::Device(request_.device).is_cpu() ? ""
                                           : request_.device);  // sums in another order
  for (const std::vector<int32_t>& ids : data_.sequences) {
    add(cat(ids.size()));
    hash.update(ids.data(), ids.size() * sizeof(int32_t));
  }
  hash.update(data_.images.bytes.data(), data_.images.bytes.size());
  for (const auto& [input, values] : data_.values) {
    add(cat(input, " ", shape_text(values.shape)));
    hash.update(values.bytes.data(), values.bytes.size());
  }
  return hash.hex();
}

// What the first rank has from before a kill, for the others.
void StreamedRun::share_resumed(SolvedLayers& solved, const Plan& plan,
                                const ArtifactSink* sink) {
  Ranks& ranks = Ranks::instance();
  if (ranks.count() == 1) return;
  for (const LayerPlan& layer : plan.layers) {
    if (layer.method == "float") continue;
    const bool mine = ranks.is_first() && solved.has(layer.tensor);
    if (ranks.broadcast(mine ? "1" : "", 0).empty()) continue;
    std::string codes;
    std::vector<std::string> levels;
    PackedTensor packed;
    if (ranks.is_first()) packed = value_or_throw(writer_->packed(layer.tensor));
    packed.scheme = layer.scheme.weight;
    const Tensor& weight = model_->tensors.at(layer.tensor);
    packed.rows = weight.rows();
    packed.cols = weight.cols();
    packed.shape = weight.shape;
    packed.scales.resize(packed.scheme.scales.size());
    packed.offsets.resize(packed.scheme.offsets.size());
    const auto share = [&](Bytes& bytes) {
      const std::string text = ranks.broadcast(std::string(bytes.text()), 0);
      if (!ranks.is_first()) bytes = Bytes::copy_of(text.data(), text.size());
    };
    share(packed.codes);
    for (auto* all : {&packed.scales, &packed.offsets}) {
      for (PackedLevel& level : *all) {
        share(level.values);
        std::string shift(reinterpret_cast<const char*>(&level.shift), sizeof(float));
        shift = ranks.broadcast(shift, 0);
        std::copy(shift.begin(), shift.end(), reinterpret_cast<char*>(&level.shift));
      }
    }
    std::optional<LowRankFactors> factors;
    if (layer.rank > 0) {
      if (sink != nullptr) {
        factors = sink->factors(layer.tensor);
      } else {
        factors = {.a = {DType::bf16, {layer.rank, packed.cols}, {}},
                   .b = {DType::bf16, {packed.rows, layer.rank}, {}}};
      }
      share(factors->a.bytes);
      share(factors->b.bytes);
    }
    if (!ranks.is_first())
      solved.put(layer, value_or_throw(unpack(packed)), {}, std::move(factors));
  }
}

namespace {

// Of a transform it counts groups.
bool counts_layers(const BlockDone& done) {
  return done.step.empty() || done.step == "mixed" || done.step == "gradients";
}

// "block 2 of 8: 7 layers, output error 0.000331, peak 345.47 MB, 3 s, 9 s left"; seconds
// since the start, when first_done layers were solved already. Of a transform
// "awq, block 2 of 8: 4 groups of layers, peak ...", of a net that is no decoder
// "3 of 20 layers, output error ...".
std::string block_text(const BlockDone& done, double seconds, int64_t first_done) {
  const bool counts = done.blocks == 0 && done.step.empty();
  const std::string which = counts             ? cat(done.done, " of ", done.total)
                            : done.blocks == 0 ? "all layers: "
                            : done.block < 0   ? "the first layers: "
                            : done.block >= done.blocks ? "the last layers: "
                                                        : cat("block ", done.block + 1,
                                                              " of ", done.blocks, ": ");
  const auto made = static_cast<double>(done.done - first_done);
  const double left = seconds * static_cast<double>(done.total - done.done) / made;
  const std::string error =  // that of what is solved on data
      done.output_error > 0 ? cat(", output error ", number_text(done.output_error, 3))
                            : std::string();
  return cat(
      done.step, done.step.empty() ? "" : ", ", which, counts ? "" : cat(done.layers),
      counts_layers(done) ? " layers" : " groups of layers", error, ", peak ",
      bytes_text(process_memory().peak), ", ", duration_text(seconds),
      done.done < done.total ? cat(", ", duration_text(left), " left") : std::string());
}

}  // namespace

// After what is done, for the message; kept: a later run goes on from there.
void StreamedRun::check_peak(bool kept, const std::string& after) {
  const int64_t peak = process_memory().peak;
  if (request_.memory == 0 || peak <= request_.memory) return;
  keeps_work_ = kept;
  throw Error(error(
      StatusCode::resource_exhausted, "[quantize] --memory: at most ",
      bytes_text(request_.memory), " were allowed; found a peak of ", bytes_text(peak),
      " after ", after,
      kept ? ", which are kept: the same command with more --memory goes on from there"
           : "; allow more"));
}

void StreamedRun::block_done(const BlockDone& done, double seconds, int64_t first_done) {
  // Other nets than decoders are through layer after layer.
  const bool brief = done.blocks == 0 && done.done < done.total &&
                     seconds_since(last_note_) < kNoteEvery;
  if (request_.note && !brief) {
    last_note_ = Clock::now();
    request_.note(block_text(done, seconds, first_done));
  }
  check_peak(done.kept, cat(done.done, " of ", done.total,
                            done.step.empty() ? " layers"
                            : done.kept       ? cat(" steps of ", done.step)
                                              : cat(" blocks of ", done.step)));
}

Status StreamedRun::solve(const Provenance& provenance, RunReport& report) {
  Ranks& ranks = Ranks::instance();
  if (ranks.is_first()) {
    // The folder of the artifact says that a run is not done (remove_finished_work).
    std::error_code failed;
    fs::create_directories(work_ / "artifact", failed);
    if (failed) {
      return error(StatusCode::io_error, "[quantize] ", work_.string(),
                   ": the directory could not be made: ", failed.message());
    }
    found_ = FoundScales(work_ / "scales", fingerprint(provenance, plan_));
    owns_work_ = true;
    if (found_.resumed() > 0 && request_.note) {
      request_.note(cat("resumes an interrupted run: ", found_.resumed(),
                        " figures from before layers are solved are there"));
    }
    if (found_.replaced() && request_.note) request_.note(kAnother);
  }
  StreamOptions options;
  options.progress = request_.progress;
  options.device = own_device(request_.device);
  options.found = &found_;
  const Clock::time_point start = Clock::now();
  step_start_ = last_done_ = start;
  last_note_ = start;
  int64_t before = 0;
  options.block_done = [&](const BlockDone& done) {
    // Of a step that others went before, the time since the last of them.
    if (done.step != step_) step_start_ = std::exchange(last_done_, Clock::now());
    step_ = done.step;
    last_done_ = Clock::now();
    block_done(done, seconds_since(step_start_), done.step.empty() ? before : 0);
  };
  // Ranks may be on machines without the output's folder.
  if (memory_.spills)
    options.spill = ranks.is_first() ? work_ : fs::temp_directory_path();
  StreamedCalibration calibration(model_, plan_, data_, options);
  const Plan& plan = calibration.plan();
  std::unique_ptr<SolvedLayers> solved;
  const ArtifactSink* sink = nullptr;
  if (ranks.is_first()) {
    NIBBLE_ASSIGN_OR_RETURN(
        ArtifactWriter writer,
        ArtifactWriter::resume(work_, fingerprint(provenance, plan),
                               outline_of(plan, calibration.model())));
    writer_.emplace(std::move(writer));
    if (!writer_->note().empty() && !found_.replaced() && request_.note)
      request_.note(writer_->note());
    auto own = std::make_unique<ArtifactSink>(calibration.model(), *writer_);
    sink = own.get();
    solved = std::move(own);
  } else {
    solved = std::make_unique<RankLayers>(calibration.model());
  }
  share_resumed(*solved, plan, sink);
  for (const LayerPlan& layer : plan.layers)
    before += layer.method != "float" && solved->has(layer.tensor);
  calibrated_ = calibration.solve(*solved);
  if (ranks.is_first() && has_corrections(plan_)) {
    read_back();
    apply_corrections(*calibrated_, data_);
    check_peak(true, "the correction of the layers");
  }
  report.calibration_seconds = seconds_since(start);
  return ok_status();
}

// Into memory, whence corrections start: codes and what the ledger says of them.
void StreamedRun::read_back() {
  KeptLayers kept(*calibrated_);
  for (LayerPlan layer : calibrated_->plan.layers) {
    if (layer.method == "float") continue;
    const LedgerEntry& entry = writer_->entry(layer.tensor);
    layer.method = entry.method;
    // Corrections are for nets of codes, whose layers have no factors beside them.
    kept.put(layer, value_or_throw(unpack(value_or_throw(writer_->packed(layer.tensor)))),
             {.tokens = entry.tokens,
              .error = entry.error,
              .output_error = entry.output_error,
              .rtn_error = entry.rtn_error,
              .rtn_output_error = entry.rtn_output_error,
              .note = entry.note},
             {});
  }
}

Artifact StreamedRun::freeze(const Provenance& provenance) {
  if (has_corrections(plan_)) return nibble::freeze(*calibrated_, provenance);
  return nibble::freeze(*calibrated_, provenance, *writer_);
}

// A corrected net is written beside the layers that it was made of. They stay until it
// has its place: a file says when that is all that is missing.
Status StreamedRun::finish_corrected(const Artifact& artifact, RunReport& report) {
  const fs::path output = decide_output(request_, report);
  const fs::path made = work_ / kCorrected;
  std::error_code failed;
  fs::remove(work_ / kReady, failed);
  fs::remove_all(made, failed);
  fs::create_directories(made, failed);
  NIBBLE_ASSIGN_OR_RETURN(
      ArtifactWriter writer,
      ArtifactWriter::begin(made, ArtifactWriter::outline_of(artifact)));
  NIBBLE_RETURN_IF_ERROR(writer.add_all(artifact));
  NIBBLE_RETURN_IF_ERROR(writer.finish(artifact, report_files(report)));
  NIBBLE_RETURN_IF_ERROR(write_proof(report, artifact, made));
  NIBBLE_ASSIGN_OR_RETURN(
      AtomicDirectory directory,
      AtomicDirectory::adopt(made, output, request_.overwrite || report.rejected));
  NIBBLE_RETURN_IF_ERROR(write_file_atomically(work_ / kReady, ""));
  return directory.commit();
}

Status StreamedRun::finish(const Artifact& artifact, RunReport& report) {
  if (has_corrections(plan_)) return finish_corrected(artifact, report);
  const fs::path output = decide_output(request_, report);
  NIBBLE_RETURN_IF_ERROR(writer_->finish(artifact, report_files(report)));
  NIBBLE_RETURN_IF_ERROR(write_proof(report, artifact, writer_->directory()));
  NIBBLE_ASSIGN_OR_RETURN(
      AtomicDirectory directory,
      AtomicDirectory::adopt(writer_->directory(), output,
                             request_.overwrite || report.rejected));
  // From here on OUTPUT.run/artifact may be the directory that was replaced: no journal
  // must speak of it.
  writer_.reset();
  std::error_code failed;
  fs::remove(work_ / "journal", failed);
  NIBBLE_RETURN_IF_ERROR(directory.commit());
  return ok_status();
}

}  // namespace nibble
