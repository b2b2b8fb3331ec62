#include "export/ggml/fits.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

constexpr int kSweeps = 5;

// sum w x q and sum w q^2 of the codes so far.
struct Sums {
  float xq = 0, qq = 0;
};

// Moves one code at a time to where the others want it. Codes below `lowest` do not
// exist.
template <class Code>
float sweep(int n, const float* x, const float* w, int lowest, int highest, Sums sums,
            Code* codes, bool need_positive_square) {
  for (int turn = 0; turn < kSweeps; ++turn) {
    bool changed = false;
    for (int i = 0; i < n; ++i) {
      const float weight = w == nullptr ? x[i] * x[i] : w[i];
      float xq = sums.xq - weight * x[i] * static_cast<float>(codes[i]);
      if (!(xq > 0)) continue;
      float qq =
          sums.qq - weight * static_cast<float>(codes[i]) * static_cast<float>(codes[i]);
      if (need_positive_square && !(qq > 0)) continue;
      const int code = clip(nearest(x[i] * qq / xq), lowest, highest);
      if (code == codes[i]) continue;
      const float q = static_cast<float>(code);
      xq += weight * x[i] * q;
      qq += weight * q * q;
      if (!need_positive_square && !(qq > 0)) continue;
      if (!(xq * xq * sums.qq > sums.xq * sums.xq * qq)) continue;
      codes[i] = static_cast<Code>(code);
      sums = {xq, qq};
      changed = true;
    }
    if (!changed) break;
  }
  return sums.qq > 0 ? sums.xq / sums.qq : 0;
}

}  // namespace

float signed_largest(int n, const float* x) {
  float largest = 0, magnitude = 0;
  for (int i = 0; i < n; ++i) {
    if (std::fabs(x[i]) <= magnitude) continue;
    magnitude = std::fabs(x[i]);
    largest = x[i];
  }
  return largest;
}

float fit_symmetric(int n, const float* x, const float* w, int highest, int8_t* codes) {
  const float largest = signed_largest(n, x);
  for (int i = 0; i < n; ++i) codes[i] = static_cast<int8_t>(-highest);
  if (std::fabs(largest) < kNothing) return 0;
  const auto code_of = [&](float inverse, int i) {
    return clip(nearest(inverse * x[i]), -highest, highest - 1);
  };
  const auto sums_of = [&](float inverse) {
    Sums sums;
    for (int i = 0; i < n; ++i) {
      const float q = static_cast<float>(code_of(inverse, i));
      const float weight = w == nullptr ? x[i] * x[i] : w[i];
      sums.xq += weight * x[i] * q;
      sums.qq += weight * q * q;
    }
    return sums;
  };
  float chosen = -static_cast<float>(highest) / largest;
  const Sums first = sums_of(chosen);
  float scale = first.qq != 0 ? first.xq / first.qq : 0.0f;
  float best = scale * first.xq;
  for (int k = -9; k <= 9; ++k) {
    if (k == 0) continue;
    const float inverse =
        -(static_cast<float>(highest) + 0.1f * static_cast<float>(k)) / largest;
    const Sums sums = sums_of(inverse);
    if (!(sums.qq > 0 && sums.xq * sums.xq > best * sums.qq)) continue;
    scale = sums.xq / sums.qq;
    best = scale * sums.xq;
    chosen = inverse;
  }
  for (int i = 0; i < n; ++i) codes[i] = static_cast<int8_t>(code_of(chosen, i));
  return scale;
}

float fit_minimum(int n, const float* x, const float* w, int highest, float first,
                  float step, int steps, bool absolute, uint8_t* codes, float* minimum) {
  float lowest = x[0], largest = x[0];
  float sum_w = w[0], sum_x = sum_w * x[0];
  for (int i = 1; i < n; ++i) {
    lowest = std::min(lowest, x[i]);
    largest = std::max(largest, x[i]);
    sum_w += w[i];
    sum_x += w[i] * x[i];
  }
  if (lowest > 0) lowest = 0;
  for (int i = 0; i < n; ++i) codes[i] = 0;
  *minimum = -lowest;
  if (largest == lowest) return 0;
  uint8_t trial[kLongestFit];
  const auto code_all = [&](float inverse, uint8_t* to) {
    for (int i = 0; i < n; ++i) {
      to[i] = static_cast<uint8_t>(clip(nearest(inverse * (x[i] - lowest)), 0, highest));
    }
  };
  const auto error_of = [&](float scale, float offset, const uint8_t* q) {
    float sum = 0;
    for (int i = 0; i < n; ++i) {
      const float d = scale * static_cast<float>(q[i]) + offset - x[i];
      sum += w[i] * (absolute ? std::fabs(d) : d * d);
    }
    return sum;
  };
  const float top = static_cast<float>(highest);
  float inverse = top / (largest - lowest);
  float scale = 1 / inverse;
  code_all(inverse, codes);
  float best = error_of(scale, lowest, codes);
  for (int k = 0; k <= steps; ++k) {
    inverse = (first + step * static_cast<float>(k) + top) / (largest - lowest);
    code_all(inverse, trial);
    float sum_q = 0, sum_qq = 0, sum_xq = 0;
    for (int i = 0; i < n; ++i) {
      const float q = static_cast<float>(trial[i]);
      sum_q += w[i] * q;
      sum_qq += w[i] * q * q;
      sum_xq += w[i] * q * x[i];
    }
    const float determinant = sum_w * sum_qq - sum_q * sum_q;
    if (!(determinant > 0)) continue;
    float this_scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
    float this_lowest = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
    if (this_lowest > 0) {
      this_lowest = 0;
      this_scale = sum_xq / sum_qq;
    }
    const float error = error_of(this_scale, this_lowest, trial);
    if (!(error < best)) continue;
    std::copy(trial, trial + n, codes);
    best = error;
    scale = this_scale;
    lowest = this_lowest;  // the next trial starts from it
  }
  *minimum = -lowest;
  return scale;
}

float fit_sweeps(int n, const float* x, int highest, int8_t* codes) {
  const float largest = signed_largest(n, x);
  for (int i = 0; i < n; ++i) codes[i] = static_cast<int8_t>(-highest);
  if (std::fabs(largest) < kNothing) return 0;
  const float inverse = -static_cast<float>(highest) / largest;
  Sums sums;
  for (int i = 0; i < n; ++i) {
    const int code = clip(nearest(inverse * x[i]), -highest, highest - 1);
    const float q = static_cast<float>(code), weight = x[i] * x[i];
    codes[i] = static_cast<int8_t>(code);
    sums.xq += weight * x[i] * q;
    sums.qq += weight * q * q;
  }
  return sweep(n, x, nullptr, -highest, highest - 1, sums, codes, false);
}

float fit_positive(int n, const float* x, const float* w, int highest, uint8_t* codes) {
  float largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, x[i]);
  for (int i = 0; i < n; ++i) codes[i] = 0;
  if (largest < kNothing) return 0;
  const float top = static_cast<float>(highest);
  const auto error_of = [&](float inverse, bool clipped) {
    const float scale = 1 / inverse;
    float sum = 0;
    for (int i = 0; i < n; ++i) {
      int q = nearest(inverse * x[i]);
      if (clipped) q = std::min(q, highest);
      const float d = x[i] - scale * static_cast<float>(q);
      sum += w[i] * d * d;
    }
    return sum;
  };
  float chosen = top / largest;
  float best = error_of(chosen, false);
  for (int k = -4; k <= 4; ++k) {
    if (k == 0) continue;
    const float inverse = (0.1f * static_cast<float>(k) + top) / largest;
    const float error = error_of(inverse, true);
    if (!(error < best)) continue;
    best = error;
    chosen = inverse;
  }
  Sums sums;
  for (int i = 0; i < n; ++i) {
    const int code = clip(nearest(chosen * x[i]), 0, highest);
    const float q = static_cast<float>(code);
    codes[i] = static_cast<uint8_t>(code);
    sums.xq += w[i] * x[i] * q;
    sums.qq += w[i] * q * q;
  }
  return sweep(n, x, w, 0, highest, sums, codes, true);
}

}  // namespace nibble
