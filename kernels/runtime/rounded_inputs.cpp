#include "kernels/runtime/rounded_inputs.h"

#include <cmath>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"

namespace nibble {

bool is_rounded_input(const ActivationScheme& input) {
  const QuantScheme& scheme = input.scheme;
  if (scheme.scales.size() != 1 || scheme.offset != OffsetKind::none) return false;
  const ElementInfo& code = element_info(scheme.code);
  const bool few_bits = code.kind == ElementKind::integer && code.bits < 8 &&
                        code_lowest(scheme) == -code_highest(scheme) && input.dynamic;
  if (scheme.code != Element::e4m3 && !few_bits) return false;
  return scheme.scales[0].block.kind ==
         (input.dynamic ? Block::Kind::row : Block::Kind::tensor);
}

void round_inputs(const ActivationScheme& input, MatrixView<const float> x, float* y) {
  const bool is_fp8 = input.scheme.code == Element::e4m3;
  const float highest = is_fp8 ? 448.0f : static_cast<float>(code_highest(input.scheme));
  parallel_for(x.rows, [&](int64_t t) {
    const float* from = x.row(t);
    float* to = y + t * x.cols;
    float scale = input.scale;
    if (input.dynamic) {
      float largest = 0;
      for (int64_t c = 0; c < x.cols; ++c)
        largest = std::fmax(largest, std::fabs(from[c]));
      scale = largest > 0 ? largest / highest : 1;
    }
    for (int64_t c = 0; c < x.cols; ++c) {
      const float v = from[c] / scale;
      const float code = is_fp8
                             ? float_from_e4m3(e4m3_from_float(v))
                             : std::fmin(std::fmax(std::nearbyint(v), -highest), highest);
      to[c] = code * scale;
    }
  });
}

}  // namespace nibble
