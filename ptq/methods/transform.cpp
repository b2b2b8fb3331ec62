#include "ptq/methods/transform.h"

namespace nibble {

const std::vector<Transform>& all_transforms() {
  static const std::vector<Transform> table = {
#define NIBBLE_TRANSFORM(name, needs_inputs, description) \
  {#name, needs_inputs, &transform_##name},
#include "ptq/methods/transforms.inc"
#undef NIBBLE_TRANSFORM
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
