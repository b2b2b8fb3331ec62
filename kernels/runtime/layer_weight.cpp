#include "kernels/runtime/layer_weight.h"

namespace nibble {
namespace {

// Act-order's columns back in their own order: no kernel gathers activations by group, so
// the weight runs as floats.
Result<LinearWeight> in_own_order(const PackedTensor& packed, const Tensor& permutation) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> order, to_int32(permutation));
  std::vector<float> sorted(static_cast<size_t>(packed.rows * packed.cols));
  NIBBLE_RETURN_IF_ERROR(dequantize_rows(
      packed, 0, MatrixView<float>(sorted.data(), packed.rows, packed.cols)));
  std::vector<float> own(sorted.size());
  for (size_t r = 0; r < static_cast<size_t>(packed.rows); ++r) {
    const size_t begin = r * static_cast<size_t>(packed.cols);
    for (size_t c = 0; c < order.size(); ++c) {
      own[begin + static_cast<size_t>(order[c])] = sorted[begin + c];
    }
  }
  return linear_weight(make_tensor(packed.shape, std::span<const float>(own)));
}

}  // namespace

Result<LinearWeight> layer_weight(const Artifact& artifact, const std::string& tensor) {
  if (const auto layer = artifact.layers.find(tensor); layer != artifact.layers.end()) {
    const LayerExtras& extras = layer->second.extras;
    for (const std::string* extra : {&extras.low_rank_a, &extras.low_rank_b}) {
      if (extra->empty()) continue;
      return error(StatusCode::unsupported, "[runtime] ", tensor,
                   ": a weight without low-rank parts was required; found ", *extra,
                   "; quantize without them");
    }
    const auto packed = artifact.packed.find(tensor);
    const auto order = artifact.tensors.find(extras.permutation);
    if (packed != artifact.packed.end() && order != artifact.tensors.end()) {
      return in_own_order(packed->second, order->second);
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
