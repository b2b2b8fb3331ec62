// How a training run is set: optimizer, schedule, batch, seed. No LibTorch here.
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
  int64_t batch = 32;  // sequences or images a step
  int64_t warmup_steps = 0;
  double final_learning_rate = 0.0;  // fraction of learning_rate at the end of the cosine
  double clip_norm = 1.0;            // 0: none
  double label_smoothing = 0;        // images
  uint64_t seed = 1;
  int64_t checkpoint_every = 0;  // steps; 0: only at the end
  int64_t log_every = 10;
};

}  // namespace nibble
