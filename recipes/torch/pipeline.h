// The two verbs that need LibTorch, from paths to a finished artifact and its report.
//
//   run_quantize  load -> plan -> calibrate -> freeze -> evaluate -> report, artifact
//   run_train     float: load or initialise -> train -> Hugging Face directory
//                 qat:   load -> plan -> calibrate -> prepare -> train -> finish ->
//                 freeze ->
//                        evaluate -> report, artifact
//
// Every error of the request (recipe, plan, missing data, existing output) comes before
// anything heavy starts. The output appears whole or not at all. run_quantize keeps what it
// has finished in `output`.run: killed and started again, it goes on there. A build without LibTorch
// has recipes/torch/no_torch.cpp in this place: unsupported. No LibTorch in this header.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "ptq/plan.h"
#include "ptq/progress.h"
#include "recipes/models/load_model.h"
#include "recipes/recipe/recipe.h"
#include "recipes/report/run_report.h"

namespace nibble {

struct PipelineRequest {
  std::filesystem::path model;
  LoadOptions load;
  Recipe recipe;
  std::filesystem::path data;  // quantize: calibration; train: training data; may be ""
  std::filesystem::path
      evaluation;  // held-out text or images; "" = what `data` leaves over
  std::filesystem::path output;
  std::filesystem::path save_calibration;  // quantize: the token ids used, for other tools
  std::vector<std::filesystem::path> compare;  // earlier artifacts, for the report's plot
  bool overwrite = false;
  bool resume = false;  // train
  int64_t memory = 0;   // quantize: bytes that resident memory may take; 0: all
  std::string device = "cpu";  // where calibration runs or training, as LibTorch names it
  // quantize: shared by requests that differ in a mixed budget alone; may be null.
  std::shared_ptr<MixedLosses> mixed_losses;
  Progress progress;  // may be empty
  std::function<void(const std::string&)>
      note;  // one line about what is going on; may be empty
};

Result<RunReport> run_quantize(const PipelineRequest& request);
Result<RunReport> run_train(const PipelineRequest& request);

bool has_torch();
// Of the processes that mpirun started, which one this is: the first one speaks and writes.
bool is_first_rank();

}  // namespace nibble
