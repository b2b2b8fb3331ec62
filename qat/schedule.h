// The learning rate of a step: linear warm-up, then half a cosine.
//
//   warm-up   rate * (step + 1) / warmup                       step < warmup
//   cosine    rate * (f + (1 - f) * (1 + cos(pi * p)) / 2)     p = (step - warmup) /
//   (steps - warmup)
//
// f = final_learning_rate. Step 0 is the first. No LibTorch here. Safe from any thread.
#pragma once

#include <cstdint>

#include "qat/train_options.h"

namespace nibble {

double learning_rate_at(const TrainOptions& options, int64_t step, int64_t steps);

}  // namespace nibble
