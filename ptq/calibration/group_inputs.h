// What the calibration data looks like to the readers of each scale group
// (ptq/topology.h), on the float model, one group after the other in program order.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "ptq/calibrate.h"
#include "ptq/methods/hessian.h"
#include "ptq/topology.h"

namespace nibble {

struct GroupInputs {
  const ScaleGroup& group;
  Hessian hessian;  // of the readers' columns
  at::Tensor mean;  // f64 [columns]: mean |x|
  at::Tensor most;  // f64 [columns]: max |x|
  at::Tensor rows;  // f32 [at most kKeptRows, columns]: tokens at even steps
  static constexpr int64_t kKeptRows = 1024;
};

// Only groups whose value is [.., features] are allowed. Throws nibble::Error.
void observe_groups(const Artifact& model, const Plan& plan, const CalibrationData& data,
                    const std::vector<ScaleGroup>& groups,
                    const std::function<void(const GroupInputs&)>& visit);

}  // namespace nibble
