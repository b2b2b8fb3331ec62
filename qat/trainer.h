// Trains a Program: float, or with quantization in the loop; resumes exactly.
//
// train() runs epochs or steps over a TrainingData, with AdamW or SGD, warm-up and cosine
// schedule, gradient clipping, and a checkpoint (parameters, buffers, optimizer,
// generator, data position) from which a resumed run gives the same bytes at the same
// thread count.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "ptq/module/program_module.h"
#include "ptq/progress.h"
#include "qat/train_options.h"

namespace nibble {

// A batch source: (epoch, index of the batch in it) -> inputs and targets, the same for
// the same arguments and seed, so that resume needs no state but two numbers.
struct TrainingBatch {
  torch::Tensor input;  // int64 [batch, sequence] or f32 [batch, channels, height, width]
  torch::Tensor target;  // int64 [batch, sequence] (-100: ignored) or [batch]
};
struct TrainingData {
  int64_t batches_per_epoch = 0;
  std::function<TrainingBatch(int64_t epoch, int64_t batch)> batch;
};

struct TrainStep {
  int64_t step = 0;
  double loss = 0;
  double learning_rate = 0;
  double gradient_norm = 0;
};
struct TrainResult {
  std::vector<TrainStep> history;  // every log_every steps, the mean loss since the last
  int64_t steps = 0;
  double seconds = 0;
};

// checkpoint: a directory for checkpoint.pt; resume: continue from it when it is there
// (data_loss when it does not fit the model or options). Throws nibble::Error; cancelled
// after writing a checkpoint.
TrainResult train(ProgramModule module, const TrainingData& data,
                  const TrainOptions& options, const std::filesystem::path& checkpoint,
                  bool resume, const Progress& progress);

}  // namespace nibble
