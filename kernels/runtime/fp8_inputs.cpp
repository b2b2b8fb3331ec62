#include "kernels/runtime/fp8_inputs.h"

#include <cmath>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"

namespace nibble {

bool is_fp8_input(const ActivationScheme& input) {
  const QuantScheme& scheme = input.scheme;
  if (scheme.code != Element::e4m3 || scheme.scales.size() != 1 ||
      scheme.offset != OffsetKind::none) {
    return false;
  }
  return scheme.scales[0].block.kind ==
         (input.dynamic ? Block::Kind::row : Block::Kind::tensor);
}

void round_to_fp8(const ActivationScheme& input, MatrixView<const float> x, float* y) {
  constexpr float kHighest = 448;  // of e4m3
  parallel_for(x.rows, [&](int64_t t) {
    const float* from = x.row(t);
    float* to = y + t * x.cols;
    float scale = input.scale;
    if (input.dynamic) {
      float largest = 0;
      for (int64_t c = 0; c < x.cols; ++c)
        largest = std::fmax(largest, std::fabs(from[c]));
      scale = largest > 0 ? largest / kHighest : 1;
    }
    for (int64_t c = 0; c < x.cols; ++c) {
      to[c] = float_from_e4m3(e4m3_from_float(from[c] / scale)) * scale;
    }
  });
}

}  // namespace nibble
