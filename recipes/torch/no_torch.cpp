// Takes pipeline.cpp's place in a build without LibTorch.
#include "recipes/torch/pipeline.h"

namespace nibble {
namespace {

Status no_torch(const char* verb) {
  return error(
      StatusCode::unsupported, "[", verb,
      "] this build: LibTorch is required; it was built without (deploy preset); use a "
      "build with NIBBLE_WITH_TORCH=ON, then carry the artifact here");
}

}  // namespace

Result<RunReport> run_quantize(const PipelineRequest&) { return no_torch("quantize"); }
Result<RunReport> run_train(const PipelineRequest&) { return no_torch("train"); }
bool has_torch() { return false; }
bool is_first_rank() { return true; }

}  // namespace nibble
