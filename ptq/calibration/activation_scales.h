// The scales of static activations, from one pass of the float model over the calibration
// data: of plan.activations and of the layers that read codes.
//
// out_of_range, naming the value: NaN or infinity. Throws nibble::Error.
#pragma once

#include <functional>

#include "ptq/calibration/found_scales.h"
#include "ptq/calibration/sharded_streams.h"

namespace nibble {

// Does anything in the plan wait for such a scale?
bool has_static_activations(const Plan& plan);

// open: streams of the float model, asked for where scales are not in `found` already;
// found gets the others.
void calibrate_activations(Plan& plan, const Program& program,
                           const std::function<ShardedStreams()>& open,
                           FoundScales& found, const Progress& progress);

}  // namespace nibble
