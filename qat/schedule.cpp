#include "qat/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace nibble {

double learning_rate_at(const TrainOptions& options, int64_t step, int64_t steps) {
  const int64_t warmup = std::min(options.warmup_steps, steps);
  if (step < warmup) {
    return options.learning_rate * static_cast<double>(step + 1) /
           static_cast<double>(warmup);
  }
  const double span = static_cast<double>(std::max<int64_t>(1, steps - warmup));
  const double progress = std::min(1.0, static_cast<double>(step - warmup) / span);
  const double cosine = (1.0 + std::cos(std::numbers::pi * progress)) / 2.0;
  const double floor = options.final_learning_rate;
  return options.learning_rate * (floor + (1.0 - floor) * cosine);
}

}  // namespace nibble
