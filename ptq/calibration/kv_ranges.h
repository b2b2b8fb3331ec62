// The scales of a static KV cache (kernels/scheme/kv_scheme.h): the largest magnitude
// that a layer's keys, and its values, reach on calibration text is the largest that its
// scale does not clamp.
//
//   s = max |x| / (the code's highest), rounded up to the scheme's element
//
// Keys are taken as caches hold them, after the rotary embedding. The artifact itself
// runs, its caches in f32, one sequence at a time; sequences are cut at its context.
//
// Gives scales to the static schemes of artifact.program.states that have none; schemes
// of other kinds stay. failed_precondition: no tokens to look at. Errors of the executor.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/artifact/artifact.h"

namespace nibble {

Status calibrate_kv_scales(Artifact& artifact,
                           const std::vector<std::vector<int32_t>>& sequences);

}  // namespace nibble
