#include "ptq/calibrate.h"

#include "ptq/calibration/bias_correction.h"
#include "ptq/one_thread.h"
#include "ptq/stream.h"

namespace nibble {

Calibrated calibrate(std::shared_ptr<const Artifact> model, const Plan& plan,
                     const CalibrationData& data, const Progress& progress,
                     const BlockProgress& block_done) {
  const OneThread one_thread;
  StreamOptions options;
  options.progress = progress;
  options.block_done = block_done;
  options.device = data.device;
  Calibrated result =
      StreamedCalibration(std::move(model), plan, data, options).solve_in_memory();
  apply_corrections(result, data);
  return result;
}

}  // namespace nibble
