// The types of 32 values, the ternary ones and IQ4_XS.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "export/ggml/block_rules.h"
#include "export/ggml/fits.h"
#include "kernels/base/float_types.h"

namespace nibble {
namespace {

float rounded_to_half(float v) { return float_from_f16(f16_from_float(v)); }
float inverse_of(float d) { return d != 0 ? 1 / d : 0.0f; }
float amax(const float* x, int n) { return std::fabs(signed_largest(n, x)); }

// Weights of the errors where columns have an importance.
void weigh(const BlockFloats& in, int first, int n, float square, float* weights) {
  for (int i = 0; i < n; ++i) {
    const float x = in.x[first + i];
    weights[i] = in.weight[first + i] * std::sqrt(square + x * x);
  }
}

// Q4_0 and Q5_0. Codes follow from the scale before it is rounded to f16.
void symmetric(const BlockFloats& in, int highest, const BlockCodes& out) {
  int8_t* codes = reinterpret_cast<int8_t*>(out.codes);
  if (in.weight != nullptr) {
    float weights[32];
    weigh(in, 0, 32, in.row_square, weights);
    out.inner[0] = rounded_to_half(fit_symmetric(32, in.x, weights, highest, codes));
    return;
  }
  const float d = signed_largest(32, in.x) / -static_cast<float>(highest);
  const float inverse = inverse_of(d), bias = static_cast<float>(highest) + 0.5f;
  out.inner[0] = rounded_to_half(d);
  for (int i = 0; i < 32; ++i) {
    const int q = std::min(2 * highest - 1, static_cast<int>(in.x[i] * inverse + bias));
    codes[i] = static_cast<int8_t>(q - highest);
  }
}
void q4_0(const BlockFloats& in, const BlockCodes& out) { symmetric(in, 8, out); }
void q5_0(const BlockFloats& in, const BlockCodes& out) { symmetric(in, 16, out); }

void with_minimum(const BlockFloats& in, int highest, const BlockCodes& out) {
  if (in.weight != nullptr) {
    float weights[32], minimum = 0;
    weigh(in, 0, 32, in.row_square, weights);
    const float d = fit_minimum(32, in.x, weights, highest, -0.9f, 0.05f, 36, false,
                                out.codes, &minimum);
    out.inner[0] = rounded_to_half(d);
    out.minima[0] = rounded_to_half(-minimum);
    return;
  }
  const auto [low, high] = std::minmax_element(in.x, in.x + 32);
  const float lowest = *low, d = (*high - lowest) / static_cast<float>(highest);
  const float inverse = inverse_of(d);
  out.inner[0] = rounded_to_half(d);
  out.minima[0] = rounded_to_half(lowest);
  for (int i = 0; i < 32; ++i) {
    out.codes[i] = static_cast<uint8_t>(
        std::min(highest, static_cast<int>((in.x[i] - lowest) * inverse + 0.5f)));
  }
}
void q4_1(const BlockFloats& in, const BlockCodes& out) { with_minimum(in, 15, out); }
void q5_1(const BlockFloats& in, const BlockCodes& out) { with_minimum(in, 31, out); }

void q8_0(const BlockFloats& in, const BlockCodes& out) {
  const float d = amax(in.x, 32) / 127;
  const float inverse = inverse_of(d);
  out.inner[0] = rounded_to_half(d);
  for (int i = 0; i < 32; ++i) {
    out.codes[i] = static_cast<uint8_t>(static_cast<int>(std::round(in.x[i] * inverse)));
  }
}

// TQ1_0 and TQ2_0.
void ternary(const BlockFloats& in, const BlockCodes& out) {
  const float d = amax(in.x, 256);
  const float inverse = inverse_of(d);
  out.inner[0] = rounded_to_half(d);
  for (int i = 0; i < 256; ++i) {
    out.codes[i] =
        static_cast<uint8_t>(static_cast<int>(std::round(in.x[i] * inverse)) + 1);
  }
}

// The exponent by the float logarithm, which rounds up just below large powers of two.
void mxfp4(const BlockFloats& in, const BlockCodes& out) {
  const float largest = amax(in.x, 32);
  const int exponent =
      largest > 0 ? static_cast<int>(std::floor(std::log2(largest))) - 2 + 127 : 0;
  const float scale = float_from_e8m0(static_cast<uint8_t>(clip(exponent, 0, 254)));
  out.inner[0] = scale;
  for (int i = 0; i < 32; ++i) {
    int best = 0;
    float least = std::fabs(in.x[i]);
    for (int code = 1; code < 16; ++code) {  // the first of equals
      const float value = scale * float_from_e2m1(static_cast<uint8_t>(code));
      const float error = std::fabs(in.x[i] - value);
      if (error < least) best = code, least = error;
    }
    out.codes[i] = static_cast<uint8_t>(best);
  }
}

// --- the table of sixteen integers

// The best of fifteen scales around -M / T[0] and least squares for its codes.
float fit_table(const float* x, const float* weights) {
  constexpr int kTries = 7;
  const float largest = signed_largest(32, x);
  if (std::fabs(largest) < kNothing) return 0;
  const float lowest = iq4nl_table()[0];
  float scale = 0, best = 0;
  const auto attempt = [&](float inverse, bool first) {
    float xq = 0, qq = 0;
    for (int i = 0; i < 32; ++i) {
      const float q = iq4nl_table()[iq4nl_from_float(inverse * x[i])];
      xq += weights[i] * q * x[i];
      qq += weights[i] * q * q;
    }
    if (!first && !(qq > 0 && xq * xq > best * qq)) return;
    scale = xq / qq;
    best = scale * xq;
  };
  attempt(1 / (-largest / lowest), true);
  for (int k = -kTries; k <= kTries; ++k) {
    attempt((static_cast<float>(k) + lowest) / largest, false);
  }
  return scale;
}

void table_weights(const BlockFloats& in, int first, float square, float* weights) {
  if (in.weight != nullptr) return weigh(in, first, 32, square, weights);
  for (int i = 0; i < 32; ++i) weights[i] = in.x[first + i] * in.x[first + i];
}

float mean_square(const float* x, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum * (2.0f / static_cast<float>(n));
}

void table_codes(const float* x, float scale, uint8_t* codes) {
  const float inverse = inverse_of(scale);
  for (int i = 0; i < 32; ++i) codes[i] = iq4nl_from_float(inverse * x[i]);
}

void iq4_nl(const BlockFloats& in, const BlockCodes& out) {
  float weights[32];
  table_weights(in, 0, mean_square(in.x, 32), weights);
  const float scale = fit_table(in.x, weights);
  out.inner[0] = rounded_to_half(scale);
  table_codes(in.x, scale, out.codes);
}

void iq4_xs(const BlockFloats& in, const BlockCodes& out) {
  float scales[8], weights[32];
  const float square = mean_square(in.x, 256);
  for (int g = 0; g < 8; ++g) {
    table_weights(in, 32 * g, square, weights);
    scales[g] = fit_table(in.x + 32 * g, weights);
  }
  const float d = -signed_largest(8, scales) / 32;
  const float inverse = inverse_of(d);
  *out.outer = rounded_to_half(d);
  for (int g = 0; g < 8; ++g) {
    const int level = clip(nearest(inverse * scales[g]), -32, 31);
    out.inner[g] = static_cast<float>(level);
    table_codes(in.x + 32 * g, d * static_cast<float>(level), out.codes + 32 * g);
  }
}

}  // namespace

BlockRule simple_block_rule(const char* type) {
  struct Row {
    const char* type;
    BlockRule rule;
  };
  static constexpr Row kRows[] = {
      {"Q4_0", q4_0},     {"Q4_1", q4_1},     {"Q5_0", q5_0},     {"Q5_1", q5_1},
      {"Q8_0", q8_0},     {"IQ4_NL", iq4_nl}, {"IQ4_XS", iq4_xs}, {"TQ1_0", ternary},
      {"TQ2_0", ternary}, {"MXFP4", mxfp4}};
  for (const Row& row : kRows) {
    if (std::strcmp(row.type, type) == 0) return row.rule;
  }
  return nullptr;
}

}  // namespace nibble
