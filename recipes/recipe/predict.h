// What a plan will cost in bytes, before anything is quantized.
//
// predict_size: exactly what the artifact's weights will take, scales, zero points and
// minima counted; parameters that no layer quantizes keep their own type.
//
// predict_memory: what quantize holds at the larger of its two peaks, calibration and the
// evaluation of both models; an estimate, part by part. The checkpoint's own file is
// mapped, and neither it nor the program with LibTorch is counted.
#pragma once

#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "ptq/plan.h"

namespace nibble {

struct PlanSize {
  int64_t layers = 0;
  int64_t quantized_layers = 0;
  int64_t bytes = 0;
  double bits_per_weight = 0;            // over all parameters
  double quantized_bits_per_weight = 0;  // over the quantized layers; 0: none
};
// model: the one that the plan was made for (prepare_for_plan).
PlanSize predict_size(const Plan& plan, const Artifact& model);

struct MemoryPart {
  std::string what;
  int64_t bytes = 0;
};
// In the order of size. invalid_argument: check_shapes'.
Result<std::vector<MemoryPart>> predict_memory(const Plan& plan, const Artifact& model);

}  // namespace nibble
