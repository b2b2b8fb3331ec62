#include "ptq/calibrate.h"

#include "ptq/calibration/bias_correction.h"
#include "ptq/module/program_module.h"
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
  if (plan.bias_correction > 0) correct_biases(result, to_torch(data.images));
  if (plan.batch_norm_reestimation > 0)
    reestimate_batch_norms(result, to_torch(data.images));
  return result;
}

}  // namespace nibble
