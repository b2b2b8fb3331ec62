#include "recipes/models/fused_experts.h"

namespace nibble {
namespace {

// Rows [first, first + rows) of one expert's matrix.
Tensor part_of(const Tensor& fused, int64_t expert, int64_t first, int64_t rows) {
  const int64_t cols = fused.shape[2];
  const auto row_bytes = static_cast<size_t>(cols * dtype_bytes(fused.dtype));
  const auto begin = static_cast<size_t>(expert * fused.shape[1] + first) * row_bytes;
  return {fused.dtype,
          {rows, cols},
          fused.bytes.slice(begin, static_cast<size_t>(rows) * row_bytes)};
}

}  // namespace

Status split_fused_experts(std::map<std::string, Tensor>& tensors) {
  std::map<std::string, Tensor> parts;
  for (auto at = tensors.begin(); at != tensors.end();) {
    const std::string& name = at->first;
    const bool gate_up = name.ends_with(".experts.gate_up_proj");
    if (!gate_up && !name.ends_with(".experts.down_proj")) {
      ++at;
      continue;
    }
    const Tensor& fused = at->second;
    if (fused.shape.size() != 3 || (gate_up && fused.shape[1] % 2 != 0)) {
      return error(StatusCode::invalid_argument, "[models] ", name,
                   ": fused experts are [experts, ", gate_up ? "2 * width" : "features",
                   ", ", gate_up ? "features" : "width", "]; found ",
                   shape_text(fused.shape));
    }
    const std::string prefix = name.substr(0, name.rfind('.') + 1);
    for (int64_t e = 0; e < fused.shape[0]; ++e) {
      const std::string expert = cat(prefix, e, ".");
      if (gate_up) {
        const int64_t half = fused.shape[1] / 2;
        parts[expert + "gate_proj.weight"] = part_of(fused, e, 0, half);
        parts[expert + "up_proj.weight"] = part_of(fused, e, half, half);
      } else {
        parts[expert + "down_proj.weight"] = part_of(fused, e, 0, fused.shape[1]);
      }
    }
    at = tensors.erase(at);
  }
  tensors.merge(parts);
  return ok_status();
}

}  // namespace nibble
