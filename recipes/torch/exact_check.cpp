#include "recipes/torch/exact_check.h"

#include <torch/types.h>

#include "kernels/runtime/executor.h"
#include "ptq/error.h"
#include "ptq/module/exact_module.h"
#include "recipes/eval/model_data.h"

namespace nibble {
namespace {

constexpr int64_t kBatch = 50;  // images whose values are held at a time, in both forms

struct Compared {
  int64_t values = 0, codes = 0;
};

// Images [first, first + count); throws at the first difference.
Compared compare(const Artifact& artifact, Executor& executor, const ImageSet& images,
                 int64_t first, int64_t count) {
  const Tensor pixels = image_batch(artifact, images, first, count);
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

  Compared compared;
  std::string different;
  executor.set_tap([&](const TapValue& tap) {
    const auto found = simulated.find(tap.name);
    if (tap.codes.empty() || found == simulated.end()) return;
    const bool equal = std::equal(tap.codes.begin(), tap.codes.end(),
                                  found->second.begin(), found->second.end());
    if (!equal && different.empty()) different = tap.name;
    ++compared.values;
    compared.codes += static_cast<int64_t>(tap.codes.size());
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
  if (!different.empty() || !same_class ||
      compared.values != static_cast<int64_t>(simulated.size())) {
    throw Error(
        error(StatusCode::internal, "[exact] ", different.empty() ? "logits" : different,
              ": the artifact and its simulation must give equal integers; found a "
              "difference on ",
              count, " images; please report this model"));
  }
  return compared;
}

}  // namespace

std::string check_exact(const Artifact& artifact, const ImageSet& images, int64_t count) {
  count = count == 0 ? images.count : std::min(count, images.count);
  Executor executor =
      value_or_throw(Executor::create(std::make_shared<const Artifact>(artifact), {}));
  Compared total;
  for (int64_t first = 0; first < count; first += kBatch) {
    const Compared batch =
        compare(artifact, executor, images, first, std::min(kBatch, count - first));
    total.values = batch.values;
    total.codes += batch.codes;
  }
  return cat("exact mode: ", total.values, " values, ", total.codes,
             " integers and the classes of ", count, " images equal to the simulation's");
}

}  // namespace nibble
