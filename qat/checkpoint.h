// The state of a training run on disk: checkpoint.pt, a LibTorch archive, whole or not
// there.
//
// What it holds: every parameter and buffer, the optimizer, the generator, the step, the
// history and the loss since its last entry, moving averages, the best weights so far;
// and the names, shapes and settings that a resumed run must share. Throws nibble::Error.
// data_loss: not readable, or of another model or other settings (says which). io_error:
// the disk refused; the old checkpoint is as it was.
#pragma once

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "qat/trainer.h"

namespace nibble {

struct TrainingState {
  ProgramModule module{nullptr};
  torch::optim::Optimizer* optimizer = nullptr;  // null: between optimizers
  std::string settings;                          // training_settings
  int64_t step = 0;
  double loss_sum = 0;  // since the last entry of history
  int64_t loss_count = 0;
  std::vector<TrainStep> history;
  std::vector<TrainEvaluation> evaluations;
  std::vector<torch::Tensor> average;      // of every trained parameter; or none
  std::vector<torch::Tensor> oscillation;  // Oscillations::state()
  std::vector<torch::Tensor> best;  // parameters and buffers of the best evaluation
  int64_t best_step = 0;
  double best_figure = 0;
};

// What must be equal for a resumed run to be the run that was stopped, as text.
std::string training_settings(const TrainOptions& options, int64_t steps,
                              int64_t batches_per_epoch);

bool checkpoint_exists(const std::filesystem::path& folder);
void write_checkpoint(const std::filesystem::path& folder, const TrainingState& state);
void read_checkpoint(const std::filesystem::path& folder, TrainingState& state);

}  // namespace nibble
