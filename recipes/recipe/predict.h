// What a plan will cost in bytes, before anything is quantized.
//
// predict_size: exactly what the artifact's weights will take, scales, zero points,
// minima and low-rank factors counted; parameters that no layer quantizes keep their own
// type.
//
// plan_memory: the peak of quantize's resident memory (anonymous memory and the pages of
// mapped files that it holds: VmHWM), which calibration has or the evaluation of both
// models; within 10 % of what is measured, part by part. The checkpoint's file passes
// through, its pages are given back.
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
// Images whose values the exact mode's check holds at a time, of so many codes each.
int64_t exact_together(int64_t codes);

struct MemoryRequest {
  int64_t cap = 0;  // bytes of resident memory; 0: none
  int threads = 1;
  // Of the calibration sequences, when they are known: all their tokens, and the longest's.
  int64_t tokens = 0, longest = 0;
  int64_t data = 0;       // bytes of images and values that stay in memory
  int64_t exact = 10;     // images of the exact mode's check, at most so many
  // That both models are run on at the end: images, or samples of a net over values.
  int64_t samples = 100;
  bool signals = false;
  bool evaluates = true;  // both models are run at the end
  bool compares = true;   // on data, and the float one against itself
};
// How a run keeps below its cap, and its peak by parts in the order of size.
struct MemoryPlan {
  std::vector<MemoryPart> parts;
  bool spills = false;     // activations wait on disk
  bool evaluates = true;   // both models fit at the end
  int64_t least = 0;       // with activations on disk, without the evaluation
  int64_t evaluation = 0;  // what running both models takes
  int64_t bytes() const;   // the peak: the sum of parts
};
// invalid_argument: check_shapes'. resource_exhausted: the cap cannot be met even so; names
// what is needed.
Result<MemoryPlan> plan_memory(const Plan& plan, const Artifact& model,
                               const MemoryRequest& request);

}  // namespace nibble
