#include "ptq/calibration/kv_ranges.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>

#include "kernels/base/cancel.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"

namespace nibble {
namespace {

float largest_magnitude(const KvRows& rows, float so_far) {
  const float* x = rows.floats();
  for (int64_t i = 0; i < rows.length() * rows.width(); ++i)
    so_far = std::max(so_far, std::fabs(x[i]));
  return so_far;
}

}  // namespace

Status calibrate_kv_scales(Artifact& artifact,
                           const std::vector<std::vector<int32_t>>& sequences) {
  std::vector<ProgramState>& states = artifact.program.states;
  const auto open = [](const QuantScheme& scheme, float scale) {
    return is_static_kv(scheme) && !(scale > 0);
  };
  if (std::none_of(states.begin(), states.end(), [&](const ProgramState& state) {
        return open(state.scheme.keys, state.scheme.key_scale) ||
               open(state.scheme.values, state.scheme.value_scale);
      })) {
    return ok_status();
  }
  size_t longest = 0;
  for (const std::vector<int32_t>& ids : sequences)
    longest = std::max(longest, ids.size());
  const int64_t context =
      std::min(artifact.program.context_length, static_cast<int64_t>(longest));
  if (context == 0)
    return error(StatusCode::failed_precondition, "[kv] ", to_string(states[0].scheme),
                 ": calibration text is required for a static scale; found none");

  ExecutorOptions options;
  options.kv = "f32";
  NIBBLE_ASSIGN_OR_RETURN(
      Executor executor,
      Executor::create(std::make_shared<const Artifact>(artifact), options));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> cache,
                          executor.make_cache(context));
  std::vector<float> keys(states.size(), 0), values(states.size(), 0);
  std::vector<float> logits(static_cast<size_t>(artifact.program.vocabulary));
  for (const std::vector<int32_t>& ids : sequences) {
    NIBBLE_RETURN_IF_ERROR(check_cancelled("quantize"));
    if (ids.empty()) continue;
    cache->truncate(0);
    NIBBLE_RETURN_IF_ERROR(executor.forward(
        std::span(ids).first(std::min(ids.size(), static_cast<size_t>(context))), *cache,
        {logits.data(), 1, artifact.program.vocabulary}));
    for (size_t i = 0; i < states.size(); ++i) {
      keys[i] = largest_magnitude(cache->keys(i), keys[i]);
      values[i] = largest_magnitude(cache->values(i), values[i]);
    }
  }
  for (size_t i = 0; i < states.size(); ++i) {
    KvScheme& scheme = states[i].scheme;
    if (open(scheme.keys, scheme.key_scale))
      scheme.key_scale = static_kv_scale(scheme.keys, keys[i]);
    if (open(scheme.values, scheme.value_scale))
      scheme.value_scale = static_kv_scale(scheme.values, values[i]);
  }
  return ok_status();
}

}  // namespace nibble
