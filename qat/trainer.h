// Trains a Program: float, or with quantization in the loop; resumes exactly.
//
//   loss   mean cross entropy; a language model's over targets that are not -100; of
//          images with label smoothing e: (1 - e) of the label, e spread over all
//          classes; with a teacher, joined with what the teacher says
//          (qat/distillation.h); of a net over values qat/signal_loss.h
//   step   the mean gradient of `accumulate` batches, clipped to a global norm; AdamW
//          (arXiv 1711.05101) or SGD with momentum, in three groups: matrices (decayed),
//          the rest (not), learned scales and zero points (own rate, not)
//          under mpirun the batches of a step are shared among the processes
//          (qat/shared_step.h), with the bytes of one
//   after  scales kept positive; oscillating weights held (qat/oscillation.h); the moving
//          average w' <- a w' + (1 - a) w, a = min(average, (1 + step) / (10 + step)),
//          which is what is evaluated and left in the module at the end (Polyak and
//          Juditsky 1992)
//
// train() runs epochs or steps over a TrainingData with warm-up and cosine
// (qat/schedule.h). Where hooks.evaluate is given it is asked every evaluate_every steps
// and at the end; the best weights are the ones that stay, and after `patience` looks
// without a gain training ends. A checkpoint holds parameters, buffers, optimizer,
// generator, history and position: a resumed run gives the same bytes as one that never
// stopped, at the same thread count.
//
// options.device: the model, its teacher and the batches are there while it trains, and
// back on the CPU afterwards. Quantizers on a grid of integers run there too
// (ptq/module/fake_quantize_composed.h), others through the CPU's memory.
//
// Throws nibble::Error. invalid_argument: an option makes no sense (names it).
// out_of_range: the loss is not finite (names the step). data_loss: the checkpoint cannot
// be read, or is of another model or other options. cancelled: after writing a
// checkpoint.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ptq/module/program_module.h"
#include "ptq/progress.h"
#include "qat/signal_loss.h"
#include "qat/train_options.h"

namespace nibble {

// A batch source: (epoch, index of the batch in it) -> inputs and targets, the same for
// the same arguments and seed, so that resume needs no state but two numbers.
struct TrainingBatch {
  torch::Tensor input;  // int64 [batch, sequence] or f32 [batch, channels, height, width]
  torch::Tensor target;  // int64 [batch, sequence] (-100: ignored) or [batch]
  std::optional<SignalBatch> signals = {};  // of a net over values, in place of the two
};
struct TrainingData {
  int64_t batches_per_epoch = 0;
  std::function<TrainingBatch(int64_t epoch, int64_t batch)> batch;
};

struct TrainStep {
  int64_t step = 0;
  double loss = 0;
  double learning_rate = 0;
  double gradient_norm = 0;  // of the last step, before clipping
};
struct TrainEvaluation {
  int64_t step = 0;
  double figure = 0;
};
struct TrainResult {
  std::vector<TrainStep> history;  // every log_every steps, the mean loss since the last
  std::vector<TrainEvaluation> evaluations;
  int64_t steps = 0;      // done
  int64_t best_step = 0;  // whose weights the module holds; steps where none was better
  double seconds = 0;     // of this run, not of what it resumed
};

struct TrainHooks {
  ProgramModule teacher{nullptr};    // for distill.*
  std::function<double()> evaluate;  // of the module as it is now; less is better
  // The run so far, whenever an entry or a look has come.
  std::function<void(const std::vector<TrainStep>&, const std::vector<TrainEvaluation>&)>
      log;
};

// checkpoint: a directory for checkpoint.pt (made when absent; empty path: none is
// written); resume: continue from it when it is there. The module is left in eval().
TrainResult train(ProgramModule module, const TrainingData& data,
                  const TrainOptions& options, const std::filesystem::path& checkpoint,
                  bool resume, const Progress& progress, const TrainHooks& hooks = {});

// logits [.., classes], target [..] -> the loss above.
torch::Tensor training_loss(const torch::Tensor& logits, const torch::Tensor& target,
                            double label_smoothing);

}  // namespace nibble
