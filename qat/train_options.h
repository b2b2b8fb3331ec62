// How a training run is set: optimizer, schedule, batch, seed, what the loss is made of.
// No LibTorch here.
#pragma once

#include <cstdint>
#include <string>

namespace nibble {

struct TrainOptions {
  std::string optimizer = "adamw";  // adamw | sgd
  double learning_rate = 1e-3;
  double scale_learning_rate = 0;    // of LSQ scales; 0: learning_rate
  double weight_decay = 0.0;         // matrices only: norms, biases and scales have none
  double momentum = 0.9;             // sgd
  double beta1 = 0.9, beta2 = 0.95;  // adamw
  int64_t steps = 0;                 // 0: epochs decides
  double epochs = 1;
  int64_t batch = 32;      // sequences or images of a forward pass
  int64_t accumulate = 1;  // forward passes whose mean gradient makes one step
  int64_t warmup_steps = 0;
  double final_learning_rate = 0.0;  // fraction of learning_rate at the end of the cosine
  double clip_norm = 1.0;            // 0: none
  double label_smoothing = 0;        // images
  std::string precision = "f32";     // f32 | bf16: operands of products
  std::string device = "cpu";  // where the model is while it trains, LibTorch's name
  bool recompute = false;            // blocks run again in the backward pass: less memory
  double average = 0;                // decay of the weights' moving average; 0: none
  uint64_t seed = 1;
  int64_t checkpoint_every = 0;  // steps; 0: only at the end
  int64_t log_every = 10;
  int64_t evaluate_every =
      0;                 // steps between looks at the artifact's own figure; 0: none
  int64_t patience = 0;  // looks without a gain before it stops; 0: never

  // Distillation from a teacher: qat/distillation.h.
  double distill_weight = 0;  // share of the teacher's loss, the rest is the data's
  double distill_temperature = 1;
  double distill_hidden = 0;  // weight of the blocks' outputs

  // Oscillating weights: qat/oscillation.h.
  double dampen = 0;
  double freeze_oscillations = 0;  // frequency above which a weight is frozen; 0: never
};

}  // namespace nibble
