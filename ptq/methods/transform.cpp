#include "ptq/methods/transform.h"

#include <string_view>

namespace nibble {
namespace {

bool uses_hessian(std::string_view name) { return name == "awq"; }

}  // namespace

const std::vector<Transform>& all_transforms() {
  static const std::vector<Transform> table = {
#define NIBBLE_TRANSFORM_scales(name) \
  {#name, &search_##name, nullptr, uses_hessian(#name)},
#define NIBBLE_TRANSFORM_edits(name) {#name, nullptr, &transform_##name, false},
#define NIBBLE_TRANSFORM(name, kind, description) NIBBLE_TRANSFORM_##kind(name)
#include "ptq/methods/transforms.inc"
#undef NIBBLE_TRANSFORM
#undef NIBBLE_TRANSFORM_edits
#undef NIBBLE_TRANSFORM_scales
  };
  return table;
}

const Transform* find_transform(const std::string& name) {
  for (const Transform& transform : all_transforms()) {
    if (name == transform.name) return &transform;
  }
  return nullptr;
}

}  // namespace nibble
