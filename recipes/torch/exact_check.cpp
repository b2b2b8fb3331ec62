#include "recipes/torch/exact_check.h"

#include <torch/types.h>

#include <cstring>
#include <numeric>
#include <set>

#include "kernels/runtime/executor.h"
#include "kernels/runtime/integer_layer.h"
#include "ptq/error.h"
#include "ptq/module/exact_module.h"
#include "recipes/eval/model_data.h"
#include "recipes/eval/signal_quality.h"
#include "recipes/recipe/predict.h"

namespace nibble {
namespace {

struct Compared {
  int64_t values = 0, codes = 0;
};

// The net's input for images or samples [first, first + count).
Tensor input_of(const Artifact& artifact, const RunData& data, int64_t first,
                int64_t count) {
  if (!data.is_signals()) return image_batch(artifact, data.images, first, count);
  const ProgramValue& input = artifact.program.inputs.front();
  std::vector<int64_t> picks(static_cast<size_t>(count));
  std::iota(picks.begin(), picks.end(), first);
  return make_tensor(batch_shape(input, count),
                     rows_to_batch(input, data.signals.inputs.at(input.name), picks));
}

torch::Tensor as_torch(std::span<const float> values, std::vector<int64_t> shape) {
  return torch::from_blob(const_cast<float*>(values.data()), shape, torch::kFloat32)
      .clone();
}

// Throws at the first difference.
Compared compare(const Artifact& artifact, Executor& executor, const Tensor& pixels) {
  const int64_t count = pixels.shape[0];
  const torch::NoGradGuard no_gradients;

  std::map<std::string, std::vector<int32_t>> simulated;
  const std::span<const float> floats(reinterpret_cast<const float*>(pixels.bytes.data()),
                                      static_cast<size_t>(pixels.numel()));
  const torch::Tensor expected =
      run_exact(artifact, as_torch(floats, pixels.shape),
                [&](const std::string& name, const torch::Tensor& codes) {
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

// Each integer layer on what the executor gave it. The samples run through unroll, with
// the states that they find.
std::string check_layers(const Artifact& artifact, Executor& executor,
                         const RunData& data, int64_t count) {
  SignalSet set;
  if (data.is_signals()) {
    const int64_t each = data.signals.count() / parts_in(data.signals);
    set = part_of(data.signals, 0, std::max<int64_t>(1, count / each));
  } else {
    const Tensor pixels = image_batch(artifact, data.images, 0, count);
    set.steps = 1;
    set.streams = count;
    set.inputs[artifact.program.inputs.front().name] = value_or_throw(to_float(pixels));
  }
  std::map<std::string, torch::Tensor> seen;
  std::set<std::string> layers;
  int64_t values = 0;
  std::string different;
  executor.set_tap([&](const TapValue& tap) {
    seen[tap.name] = as_torch(tap.floats, tap.shape);
    const Node* node = artifact.program.producer(tap.name);
    const bool codes = node != nullptr && node->op != "lstm" &&
                       static_input(artifact, node->parameter("weight")) != nullptr;
    if (!codes || !seen.count(node->inputs[0])) return;
    const torch::Tensor expected =
        run_exact_layer(artifact, *node, seen.at(node->inputs[0])).contiguous();
    const bool equal = expected.numel() == static_cast<int64_t>(tap.floats.size()) &&
                       std::memcmp(expected.const_data_ptr<float>(), tap.floats.data(),
                                   tap.floats.size() * sizeof(float)) == 0;
    if (!equal && different.empty()) different = node->name;
    layers.insert(node->name);
    values += expected.numel();
  });
  const UnrolledSignals ignored = value_or_throw(unroll(executor, set, {}));
  if (!different.empty()) {
    throw Error(
        error(StatusCode::internal, "[exact] ", different,
              ": the artifact and its simulation must give equal numbers; found a "
              "difference on ",
              set.count(), " samples; please report this model"));
  }
  return cat("exact mode: ", layers.size(), " layers that read codes, ", values,
             " outputs on ", set.count(),
             " samples equal to the simulation's, bit for bit");
}

}  // namespace

std::string check_exact(const Artifact& artifact, const RunData& data, int64_t count) {
  count = count == 0 ? data.count() : std::min(count, data.count());
  Executor executor =
      value_or_throw(Executor::create(std::make_shared<const Artifact>(artifact), {}));
  if (artifact.activations.empty()) return check_layers(artifact, executor, data, count);
  Compared total;
  const int64_t together = exact_together(executor.row_bytes());
  for (int64_t first = 0; first < count; first += together) {
    const Compared batch =
        compare(artifact, executor,
                input_of(artifact, data, first, std::min(together, count - first)));
    total.values = batch.values;
    total.codes += batch.codes;
  }
  return cat("exact mode: ", total.values, " values, ", total.codes,
             " integers and the classes of ", count, " images equal to the simulation's");
}

}  // namespace nibble
