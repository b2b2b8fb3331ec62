#include "qat/checkpoint.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/serialize/archive.h>

#include <mutex>
#include <system_error>

#include "kernels/base/file.h"

namespace nibble {
namespace {

constexpr int64_t kVersion = 2;
constexpr int64_t kHistoryColumns = 4;

[[noreturn]] void fail(StatusCode code, const std::string& text) {
  throw Error(Status(code, "[train] " + text));
}

std::filesystem::path file_of(const std::filesystem::path& folder) {
  return folder / "checkpoint.pt";
}

// Parameters, then buffers, in the module's own order.
std::vector<std::pair<std::string, torch::Tensor>> tensors_of(
    const ProgramModule& module) {
  std::vector<std::pair<std::string, torch::Tensor>> result;
  for (const auto& item : module->named_parameters())
    result.emplace_back(item.key(), item.value());
  for (const auto& item : module->named_buffers())
    result.emplace_back(item.key(), item.value());
  return result;
}

std::string signature(const ProgramModule& module) {
  std::string result;
  for (const auto& [name, tensor] : tensors_of(module)) {
    result += cat(name, " ", tensor.sizes(), "\n");
  }
  return result;
}

void write_list(torch::serialize::OutputArchive& archive, const std::string& name,
                const std::vector<torch::Tensor>& tensors) {
  archive.write(name + "_count", c10::IValue(static_cast<int64_t>(tensors.size())));
  for (size_t i = 0; i < tensors.size(); ++i)
    archive.write(cat(name, "_", i), tensors[i].detach());
}

// Into the tensors that are there already, which others may hold too; else new ones.
void read_list(torch::serialize::InputArchive& archive, const std::string& name,
               std::vector<torch::Tensor>& tensors) {
  c10::IValue count;
  archive.read(name + "_count", count);
  const bool in_place = static_cast<int64_t>(tensors.size()) == count.toInt();
  if (!in_place) tensors.assign(static_cast<size_t>(count.toInt()), {});
  for (size_t i = 0; i < tensors.size(); ++i) {
    torch::Tensor saved;
    archive.read(cat(name, "_", i), saved);
    if (in_place) {
      tensors[i].copy_(saved);
    } else {
      tensors[i] = saved;
    }
  }
}

std::string text_of(torch::serialize::InputArchive& archive, const char* key) {
  c10::IValue value;
  archive.read(key, value);
  return value.toStringRef();
}

}  // namespace

std::string training_settings(const TrainOptions& o, int64_t steps,
                              int64_t batches_per_epoch) {
  std::ostringstream text;
  text.precision(17);  // doubles exactly
  text << "optimizer " << o.optimizer << "\nlearning_rate " << o.learning_rate
       << "\nscale_learning_rate " << o.scale_learning_rate << "\nweight_decay "
       << o.weight_decay << "\nmomentum " << o.momentum << "\nbetas " << o.beta1 << " "
       << o.beta2 << "\nsteps " << steps << "\nbatch " << o.batch
       << "\nbatches_per_epoch " << batches_per_epoch << "\nwarmup_steps "
       << o.warmup_steps << "\nfinal_learning_rate " << o.final_learning_rate
       << "\nclip_norm " << o.clip_norm << "\nlabel_smoothing " << o.label_smoothing
       << "\nseed " << o.seed << "\nlog_every " << o.log_every << "\naccumulate "
       << o.accumulate << "\nprecision " << o.precision << "\naverage " << o.average
       << "\nevaluate_every " << o.evaluate_every << "\npatience " << o.patience
       << "\ndistill " << o.distill_weight << " " << o.distill_temperature << " "
       << o.distill_hidden << "\noscillations " << o.dampen << " "
       << o.freeze_oscillations << "\n";
  if (o.device != "cpu") text << "device " << o.device << "\n";  // sums in another order
  return text.str();
}

bool checkpoint_exists(const std::filesystem::path& folder) {
  std::error_code ignored;
  return !folder.empty() && std::filesystem::exists(file_of(folder), ignored);
}

void write_checkpoint(const std::filesystem::path& folder, const TrainingState& state) {
  torch::serialize::OutputArchive archive;
  archive.write("version", c10::IValue(kVersion));
  archive.write("signature", c10::IValue(signature(state.module)));
  archive.write("settings", c10::IValue(state.settings));
  archive.write("step", c10::IValue(state.step));
  archive.write("loss_sum", c10::IValue(state.loss_sum));
  archive.write("loss_count", c10::IValue(state.loss_count));
  torch::Tensor history = at::empty(
      {static_cast<int64_t>(state.history.size()), kHistoryColumns}, at::kDouble);
  double* row = history.mutable_data_ptr<double>();
  for (const TrainStep& entry : state.history) {
    *row++ = static_cast<double>(entry.step);
    *row++ = entry.loss;
    *row++ = entry.learning_rate;
    *row++ = entry.gradient_norm;
  }
  archive.write("history", history);
  torch::Tensor evaluations =
      at::empty({static_cast<int64_t>(state.evaluations.size()), 2}, at::kDouble);
  row = evaluations.mutable_data_ptr<double>();
  for (const TrainEvaluation& entry : state.evaluations) {
    *row++ = static_cast<double>(entry.step);
    *row++ = entry.figure;
  }
  archive.write("evaluations", evaluations);
  archive.write("best_step", c10::IValue(state.best_step));
  archive.write("best_figure", c10::IValue(state.best_figure));
  write_list(archive, "average", state.average);
  write_list(archive, "oscillation", state.oscillation);
  write_list(archive, "best", state.best);
  // Names hold dots, which an archive's keys may not: by number, the signature has the
  // names.
  int64_t index = 0;
  for (const auto& [name, tensor] : tensors_of(state.module)) {
    archive.write(cat("tensor_", index++), tensor.detach());
  }
  torch::serialize::OutputArchive optimizer;
  if (state.optimizer != nullptr) state.optimizer->save(optimizer);
  archive.write("optimizer", optimizer);
  {
    auto generator = at::detail::getDefaultCPUGenerator();
    std::lock_guard<std::mutex> lock(generator.mutex());
    archive.write("generator", generator.get_state());
  }
  std::string bytes;
  archive.save_to([&](const void* data, size_t size) {
    bytes.append(static_cast<const char*>(data), size);
    return size;
  });
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (failed) {
    fail(StatusCode::io_error,
         cat(folder.string(), ": a folder for the checkpoint was required; ",
             failed.message(), "; choose another output"));
  }
  throw_if_error(write_file_atomically(file_of(folder), bytes));
}

void read_checkpoint(const std::filesystem::path& folder, TrainingState& state) {
  const std::string path = file_of(folder).string();
  try {
    torch::serialize::InputArchive archive;
    archive.load_from(path);
    c10::IValue version;
    archive.read("version", version);
    if (version.toInt() != kVersion) {
      fail(StatusCode::data_loss,
           cat(path, ": version ", kVersion, " was required; found ", version.toInt(),
               "; train again without --resume"));
    }
    if (text_of(archive, "signature") != signature(state.module)) {
      fail(StatusCode::data_loss,
           cat(path,
               ": a checkpoint of this model was required; its tensors have other names "
               "or "
               "shapes; give the model it was made from, or train without --resume"));
    }
    if (const std::string found = text_of(archive, "settings"); found != state.settings) {
      fail(StatusCode::data_loss,
           cat(path, ": a checkpoint of these settings was required:\n", state.settings,
               "; found:\n", found,
               "; give the same settings, or train without --resume"));
    }
    c10::IValue step, loss_sum, loss_count;
    archive.read("step", step);
    archive.read("loss_sum", loss_sum);
    archive.read("loss_count", loss_count);
    torch::Tensor history, evaluations, generator_state;
    archive.read("history", history);
    archive.read("evaluations", evaluations);
    archive.read("generator", generator_state);
    torch::NoGradGuard no_grad;
    int64_t index = 0;
    for (auto& [name, tensor] : tensors_of(state.module)) {
      torch::Tensor saved;
      archive.read(cat("tensor_", index++), saved);
      tensor.copy_(saved);
    }
    read_list(archive, "average", state.average);
    read_list(archive, "oscillation", state.oscillation);
    read_list(archive, "best", state.best);
    c10::IValue best_step, best_figure;
    archive.read("best_step", best_step);
    archive.read("best_figure", best_figure);
    state.best_step = best_step.toInt();
    state.best_figure = best_figure.toDouble();
    torch::serialize::InputArchive optimizer;
    archive.read("optimizer", optimizer);
    if (state.optimizer != nullptr) state.optimizer->load(optimizer);
    auto generator = at::detail::getDefaultCPUGenerator();
    {
      std::lock_guard<std::mutex> lock(generator.mutex());
      generator.set_state(generator_state);
    }
    state.step = step.toInt();
    state.loss_sum = loss_sum.toDouble();
    state.loss_count = loss_count.toInt();
    state.history.clear();
    const double* row = history.const_data_ptr<double>();
    for (int64_t i = 0; i < history.size(0); ++i, row += kHistoryColumns) {
      state.history.push_back({static_cast<int64_t>(row[0]), row[1], row[2], row[3]});
    }
    state.evaluations.clear();
    row = evaluations.const_data_ptr<double>();
    for (int64_t i = 0; i < evaluations.size(0); ++i, row += 2)
      state.evaluations.push_back({static_cast<int64_t>(row[0]), row[1]});
  } catch (const c10::Error& error) {
    fail(StatusCode::data_loss,
         cat(path,
             ": a whole checkpoint was required; found a damaged or truncated file (",
             error.what_without_backtrace(), "); train again without --resume"));
  }
}

}  // namespace nibble
