#include "kernels/runtime/layer_weight.h"

namespace nibble {

Result<LinearWeight> layer_weight(const Artifact& artifact, const std::string& tensor) {
  if (const auto layer = artifact.layers.find(tensor); layer != artifact.layers.end()) {
    const LayerExtras& extras = layer->second.extras;
    for (const std::string* extra :
         {&extras.permutation, &extras.low_rank_a, &extras.low_rank_b}) {
      if (extra->empty()) continue;
      return error(
          StatusCode::unsupported, "[runtime] ", tensor,
          ": a weight without permutation or low-rank parts was required; found ", *extra,
          "; quantize with static groups and without low-rank parts");
    }
  }
  if (const auto packed = artifact.packed.find(tensor); packed != artifact.packed.end()) {
    return linear_weight(packed->second);
  }
  const auto plain = artifact.tensors.find(tensor);
  if (plain != artifact.tensors.end()) return linear_weight(plain->second);
  return error(StatusCode::not_found, "[runtime] ", tensor,
               ": this tensor was required; the artifact has none by this name");
}

}  // namespace nibble
