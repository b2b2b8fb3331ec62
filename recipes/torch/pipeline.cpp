#include "recipes/torch/pipeline.h"

namespace nibble {

bool has_torch() { return true; }

}  // namespace nibble
