// Seeded numbers and weights for tests, without a test framework.
#pragma once

#include <vector>

#include "kernels/base/float_types.h"
#include "kernels/base/splitmix64.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

// The sum of 12 uniform numbers less 6: nearly normal.
inline std::vector<float> random_floats(int64_t n, uint64_t seed) {
  SplitMix64 random(seed);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += random.uniform();
    v = static_cast<float>(sum);
  }
  return x;
}

// A random weight as an artifact would hold it.
inline Result<LinearWeight> make_random_weight(const std::string& scheme_text,
                                               int64_t rows, int64_t cols,
                                               uint64_t seed) {
  std::vector<float> values = random_floats(rows * cols, seed);
  for (float& v : values) v = 0.3f * v + 0.1f;  // so that zero points and minima matter
  NIBBLE_ASSIGN_OR_RETURN(const QuantScheme scheme, parse_scheme(scheme_text));
  if (scheme.is_float()) {
    Tensor tensor = make_tensor({rows, cols}, values);
    if (scheme.code != Element::f32) {
      const bool bf16 = scheme.code == Element::bf16;
      std::vector<uint16_t> bits;
      for (float v : values)
        bits.push_back(bf16 ? bf16_from_float(v) : f16_from_float(v));
      tensor.dtype = bf16 ? DType::bf16 : DType::f16;
      tensor.bytes = Bytes::copy_of(bits.data(), bits.size() * 2);
    }
    return linear_weight(tensor);
  }
  const MatrixView<const float> x(values.data(), rows, cols);
  // Scales of both signs, where the scheme has them.
  NIBBLE_ASSIGN_OR_RETURN(CodedMatrix q,
                          choose_scales(x, scheme, ScaleRule{.full_range = true}));
  NIBBLE_RETURN_IF_ERROR(quantize(x, q));
  NIBBLE_ASSIGN_OR_RETURN(const PackedTensor packed, pack(q, {rows, cols}));
  return linear_weight(packed);
}

}  // namespace nibble
