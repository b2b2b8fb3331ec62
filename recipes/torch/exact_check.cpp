#include "recipes/torch/exact_check.h"

#include <torch/torch.h>

#include "kernels/runtime/executor.h"
#include "ptq/error.h"
#include "ptq/module/exact_module.h"
#include "recipes/eval/model_data.h"

namespace nibble {

std::string check_exact(const Artifact& artifact, const ImageSet& images, int64_t count) {
  count = std::min(count, images.count);
  const Tensor pixels = image_batch(artifact, images, 0, count);
  const torch::NoGradGuard no_gradients;

  std::map<std::string, std::vector<int32_t>> simulated;
  const torch::Tensor input =
      torch::from_blob(const_cast<std::byte*>(pixels.bytes.data()), pixels.shape,
                       torch::kFloat32)
          .clone();
  const torch::Tensor expected = run_exact(
      artifact, input, [&](const std::string& name, const torch::Tensor& codes) {
        const torch::Tensor flat = codes.to(torch::kInt32).contiguous();
        const int32_t* begin = flat.data_ptr<int32_t>();
        simulated[name].assign(begin, begin + flat.numel());
      });

  Executor executor =
      value_or_throw(Executor::create(std::make_shared<const Artifact>(artifact), {}));
  int64_t values = 0, codes = 0;
  std::string different;
  executor.set_tap([&](const TapValue& tap) {
    const auto found = simulated.find(tap.name);
    if (tap.codes.empty() || found == simulated.end()) return;
    const bool equal = std::equal(tap.codes.begin(), tap.codes.end(),
                                  found->second.begin(), found->second.end());
    if (!equal && different.empty()) different = tap.name;
    ++values;
    codes += static_cast<int64_t>(tap.codes.size());
  });
  const int64_t classes = expected.size(1);
  std::vector<float> logits(static_cast<size_t>(count * classes));
  const std::span<const float> floats(reinterpret_cast<const float*>(pixels.bytes.data()),
                                      static_cast<size_t>(pixels.numel()));
  throw_if_error(executor.forward_images(
      floats, pixels.shape, MatrixView<float>(logits.data(), count, classes)));
  const torch::Tensor found =
      torch::from_blob(logits.data(), {count, classes}, torch::kFloat32);
  const bool same_class = torch::equal(found.argmax(1), expected.argmax(1));
  if (!different.empty() || !same_class || values == 0) {
    throw Error(
        error(StatusCode::internal, "[exact] ", different.empty() ? "logits" : different,
              ": the artifact and its simulation must give equal integers; found a "
              "difference on ",
              count, " images; please report this model"));
  }
  return cat("exact mode: ", values, " values, ", codes, " integers and the classes of ",
             count, " images equal to the simulation's");
}

}  // namespace nibble
