// The types of 256 values whose scales are scaled themselves: Q2_K to Q6_K.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "export/ggml/block_rules.h"
#include "export/ggml/fits.h"
#include "kernels/base/float_types.h"

namespace nibble {
namespace {

constexpr int kBlock = 256;

float rounded_to_half(float v) { return float_from_f16(f16_from_float(v)); }

float sum_of_squares(const float* x, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

// The types with a minimum. Without importance the weights follow from x alone.
struct MinimumRule {
  int group;    // values a scale
  int highest;  // code
  int level;    // highest code of the scales
  float first, step;
  int steps;
  bool absolute;        // errors by magnitude, weights |x|
  float square_factor;  // of the mean square, with importance
};

void with_minimum(const MinimumRule& rule, const BlockFloats& in, const BlockCodes& out) {
  const int groups = kBlock / rule.group;
  float scales[16], minima[16], sums[16];
  const float square =
      rule.square_factor * sum_of_squares(in.x, kBlock) / static_cast<float>(kBlock);
  for (int g = 0; g < groups; ++g) {
    const float* x = in.x + g * rule.group;
    float weights[kLongestFit];
    if (in.weight != nullptr) {
      const float* importance = in.weight + g * rule.group;
      for (int i = 0; i < rule.group; ++i)
        weights[i] = importance[i] * std::sqrt(square + x[i] * x[i]);
    } else {
      const float mean =
          rule.absolute
              ? 0.0f
              : std::sqrt(sum_of_squares(x, rule.group) / static_cast<float>(rule.group));
      for (int i = 0; i < rule.group; ++i) weights[i] = mean + std::fabs(x[i]);
    }
    sums[g] = 0;
    for (int i = 0; i < rule.group; ++i) sums[g] += weights[i];
    uint8_t* codes = out.codes + g * rule.group;
    scales[g] =
        in.weight != nullptr
            ? fit_minimum(rule.group, x, weights, rule.highest, -0.9f, 0.05f, 36, false,
                          codes, &minima[g])
            : fit_minimum(rule.group, x, weights, rule.highest, rule.first, rule.step,
                          rule.steps, rule.absolute, codes, &minima[g]);
  }

  // The scales as codes of their own, rounded down to f16.
  const auto fit_level = [&](const float* values, float* codes) {
    uint8_t level[16];
    float scale = 0;
    if (in.weight != nullptr) {
      scale = fit_positive(groups, values, sums, rule.level, level);
    } else {
      const float largest = std::max(0.0f, *std::max_element(values, values + groups));
      const float inverse = largest > 0 ? static_cast<float>(rule.level) / largest : 0.0f;
      for (int g = 0; g < groups; ++g) {
        level[g] =
            static_cast<uint8_t>(clip(nearest(inverse * values[g]), 0, rule.level));
      }
      scale = largest / static_cast<float>(rule.level);
    }
    for (int g = 0; g < groups; ++g) codes[g] = static_cast<float>(level[g]);
    return rounded_to_half(scale);
  };
  const float d = fit_level(scales, out.inner);
  const float dmin = fit_level(minima, out.minima);
  *out.outer = d;
  *out.outer_minimum = -dmin;

  for (int g = 0; g < groups; ++g) {
    const float scale = d * out.inner[g], minimum = dmin * out.minima[g];
    if (scale == 0) continue;  // the codes of the fit stay
    for (int i = g * rule.group; i < (g + 1) * rule.group; ++i) {
      out.codes[i] = static_cast<uint8_t>(
          clip(nearest((in.x[i] + minimum) / scale), 0, rule.highest));
    }
  }
}

void q2_k(const BlockFloats& in, const BlockCodes& out) {
  with_minimum({16, 3, 15, -0.5f, 0.1f, 15, true, 1.0f}, in, out);
}
void q4_k(const BlockFloats& in, const BlockCodes& out) {
  with_minimum({32, 15, 63, -1.0f, 0.1f, 20, false, 2.0f}, in, out);
}
void q5_k(const BlockFloats& in, const BlockCodes& out) {
  with_minimum({32, 31, 63, -0.5f, 0.1f, 15, false, 2.0f}, in, out);
}

// Codes again, from the scales as they are stored.
void code_symmetric(const BlockFloats& in, int highest, const BlockCodes& out) {
  for (int g = 0; g < 16; ++g) {
    const float scale = *out.outer * out.inner[g];
    if (scale == 0) continue;
    for (int i = 16 * g; i < 16 * (g + 1); ++i) {
      out.codes[i] =
          static_cast<uint8_t>(clip(nearest(in.x[i] / scale), -highest, highest - 1));
    }
  }
}

void q3_k(const BlockFloats& in, const BlockCodes& out) {
  float scales[16], sums[16];
  const float square = 2 * sum_of_squares(in.x, kBlock) / static_cast<float>(kBlock);
  int8_t* codes = reinterpret_cast<int8_t*>(out.codes);
  for (int g = 0; g < 16; ++g) {
    const float* x = in.x + 16 * g;
    if (in.weight == nullptr) {
      scales[g] = fit_sweeps(16, x, 4, codes + 16 * g);
      continue;
    }
    float weights[16];
    sums[g] = 0;
    for (int i = 0; i < 16; ++i)
      weights[i] = in.weight[16 * g + i] * std::sqrt(square + x[i] * x[i]);
    for (int i = 0; i < 16; ++i) sums[g] += weights[i];
    scales[g] = fit_symmetric(16, x, weights, 4, codes + 16 * g);
  }
  int8_t level[16];
  float d = 0;
  if (in.weight != nullptr) {
    d = fit_symmetric(16, scales, sums, 32, level);
  } else {
    const float largest = signed_largest(16, scales);
    const float inverse = largest != 0 ? -32.0f / largest : 0.0f;
    for (int g = 0; g < 16; ++g)  // 0 codes are stored as -32 where nothing is there
      level[g] = static_cast<int8_t>(
          largest != 0 ? clip(nearest(inverse * scales[g]), -32, 31) : -32);
    d = largest != 0 ? 1 / inverse : 0.0f;
  }
  for (int g = 0; g < 16; ++g) out.inner[g] = static_cast<float>(level[g]);
  *out.outer = rounded_to_half(d);
  code_symmetric(in, 4, out);
}

void q6_k(const BlockFloats& in, const BlockCodes& out) {
  float scales[16];
  int8_t* codes = reinterpret_cast<int8_t*>(out.codes);
  for (int g = 0; g < 16; ++g) {
    const float* weights = in.weight == nullptr ? nullptr : in.weight + 16 * g;
    scales[g] = fit_symmetric(16, in.x + 16 * g, weights, 32, codes + 16 * g);
  }
  const float largest = signed_largest(16, scales);
  if (std::fabs(largest) < kNothing) {  // a block of zero bytes
    std::memset(out.codes, -32, kBlock);
    std::fill(out.inner, out.inner + 16, 0.0f);
    *out.outer = 0;
    return;
  }
  const float inverse = -128.0f / largest;
  *out.outer = rounded_to_half(1 / inverse);
  for (int g = 0; g < 16; ++g)
    out.inner[g] = static_cast<float>(std::min(127, nearest(inverse * scales[g])));
  code_symmetric(in, 32, out);
}

}  // namespace

BlockRule k_block_rule(const char* type) {
  struct Row {
    const char* type;
    BlockRule rule;
  };
  static constexpr Row kRows[] = {
      {"Q2_K", q2_k}, {"Q3_K", q3_k}, {"Q4_K", q4_k}, {"Q5_K", q5_k}, {"Q6_K", q6_k}};
  for (const Row& row : kRows) {
    if (std::strcmp(row.type, type) == 0) return row.rule;
  }
  return nullptr;
}

}  // namespace nibble
