#include "ptq/module/fake_quantize_any.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/scheme/element_codec.h"
#include "kernels/scheme/level_runs.h"
#include "ptq/error.h"
#include "ptq/module/wide.h"

namespace nibble {
namespace {

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23, as fake_quantize_kernel.cpp
constexpr int64_t kPart = 32768;       // values worth a task
constexpr int kSteps = 15;             // between the 16 numbers of a 4-bit code

// --- v from u

// The bits of floats in the order of their numbers, -0 before +0.
int32_t ordered(float x) {
  const auto bits = std::bit_cast<int32_t>(x);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
float from_ordered(int32_t key) {
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff));
}

// An element of at most 16 numbers as steps: v = values[i], i the number of keys below u.
// Found by bisection through the codec, so ties fall as the codec lets them fall.
struct Steps {
  std::array<int32_t, kSteps> keys;
  std::array<float, kSteps + 1> values;
};
Steps steps_of(const QuantScheme& scheme) {
  const auto number = [&](int32_t key) {
    return ordered(value_of(scheme.code, code_of(scheme, from_ordered(key))));
  };
  const int32_t most = ordered(std::numeric_limits<float>::max());
  Steps steps;
  steps.keys.fill(std::numeric_limits<int32_t>::max());
  int32_t at = -most - 1;  // the order's mirror of the largest float
  steps.values.fill(from_ordered(number(at)));
  for (int k = 0; k < kSteps && number(at) != number(most); ++k) {
    const int32_t here = number(at);
    int64_t low = at, high = most;  // number(low) == here != number(high)
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      (number(static_cast<int32_t>(middle)) == here ? low : high) = middle;
    }
    steps.keys[k] = static_cast<int32_t>(low);
    at = static_cast<int32_t>(high);
    for (int i = k + 1; i <= kSteps; ++i) steps.values[i] = from_ordered(number(at));
  }
  return steps;
}

NIBBLE_EVERY_WIDTH
void round_steps(const Steps& steps, const float* u, float* v, int64_t padded) {
  for (int64_t i = 0; i < padded; i += kWide) {
    WideBits bits;
    __builtin_memcpy(&bits, u + i, sizeof bits);
    bits = bits ^ ((bits >> 31) & 0x7fffffff);
    Wide number = steps.values[0] - Wide{};  // not + : -0 + 0 is +0
    for (int k = 0; k < kSteps; ++k) {
      number = bits > steps.keys[k] ? steps.values[k + 1] - Wide{} : number;
    }
    __builtin_memcpy(v + i, &number, sizeof number);
  }
}

// Minifloats of 8 bits: |u| plus and minus 1.5 * 2^23 spacings, the spacing being that of
// |u|'s power of two, or of the smallest normal one.
//   magic  1.5 * 2^(23 - mantissa bits)
NIBBLE_EVERY_WIDTH
void round_minifloat(float magic, float smallest_normal, float largest, const float* u,
                     float* v, int64_t padded) {
  for (int64_t i = 0; i < padded; i += kWide) {
    WideBits bits;
    __builtin_memcpy(&bits, u + i, sizeof bits);
    const WideBits sign = bits & static_cast<int32_t>(0x80000000u);
    bits = bits & 0x7fffffff;
    Wide size, power;
    __builtin_memcpy(&size, &bits, sizeof size);
    size = size > largest ? Wide{} + largest : size;
    __builtin_memcpy(&bits, &size, sizeof bits);
    bits = bits & 0x7f800000;
    __builtin_memcpy(&power, &bits, sizeof power);
    power = power < smallest_normal ? Wide{} + smallest_normal : power;
    size = (size + power * magic) - power * magic;
    __builtin_memcpy(&bits, &size, sizeof bits);
    bits = bits | sign;
    __builtin_memcpy(v + i, &bits, sizeof bits);
  }
}

NIBBLE_EVERY_WIDTH
void round_integers(const float* low, const float* high, const float* u, float* v,
                    int64_t padded) {
  for (int64_t i = 0; i < padded; ++i) {
    float at = u[i] < low[i] ? low[i] : u[i];
    at = at > high[i] ? high[i] : at;
    v[i] = (at + kRound) - kRound;
  }
}

// --- the loops around it

NIBBLE_EVERY_WIDTH
void divide(const float* x, const float* m, const float* s, float* u, int64_t n) {
  if (m == nullptr) {
    for (int64_t i = 0; i < n; ++i) u[i] = x[i] / s[i];
  } else {
    for (int64_t i = 0; i < n; ++i) u[i] = (x[i] - m[i]) / s[i];
  }
}

NIBBLE_EVERY_WIDTH
void multiply(const float* v, const float* m, const float* s, float* y, int64_t n) {
  if (m == nullptr) {
    for (int64_t i = 0; i < n; ++i) y[i] = s[i] * v[i];
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = s[i] * v[i] + m[i];
  }
}

// inner[i]: what one value gives its scale; out[i]: what it gives its minimum.
NIBBLE_EVERY_WIDTH
void gradients(const float* u, const float* v, const float* low, const float* high,
               const float* dy, float* dx, float* inner, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const bool inside = u[i] >= low[i] && u[i] <= high[i];
    const float d = dy[i];
    dx[i] = inside ? d : 0.0f;
    inner[i] = d * (inside ? v[i] - u[i] : v[i]);
    out[i] = inside ? 0.0f : d;
  }
}

NIBBLE_EVERY_WIDTH
bool usable(const float* x, const float* s, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t number, scale;
    __builtin_memcpy(&number, x + i, sizeof number);
    __builtin_memcpy(&scale, s + i, sizeof scale);
    bad |= (number & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
    bad |= scale - 1u >= 0x7f7fffffu ? 1u : 0u;  // not a finite positive float
  }
  return bad == 0;
}

NIBBLE_EVERY_WIDTH
float sum_of_products(const float* a, const float* b, int64_t n) {
  const int64_t whole = n / kWide * kWide;
  Wide sums = {};
  for (int64_t i = 0; i < whole; i += kWide) {
    Wide left, right;
    __builtin_memcpy(&left, a + i, sizeof left);
    __builtin_memcpy(&right, b + i, sizeof right);
    sums += left * right;
  }
  float lanes[kWide];
  __builtin_memcpy(lanes, &sums, sizeof lanes);
  for (int64_t i = whole; i < n; ++i) lanes[i - whole] += a[i] * b[i];
  return sum_of_lanes(lanes);
}

// --- one row at a time

bool has_shape(const CodedMatrix& q, const std::vector<ScaleLevel>& scheme,
               const std::vector<CodedLevel>& levels) {
  if (scheme.size() != levels.size()) return false;
  for (size_t k = 0; k < levels.size(); ++k) {
    const LevelShape shape = level_shape(scheme[k].block, q.rows, q.cols);
    if (static_cast<int64_t>(levels[k].values.size()) != shape.rows * shape.cols)
      return false;
  }
  return true;
}

// What is the same for every row.
class Scheme {
 public:
  explicit Scheme(const CodedMatrix& levels) : q(levels) {
    const ElementInfo& info = element_info(q.scheme.code);
    integer = info.kind == ElementKind::integer;
    lowest = integer ? static_cast<float>(code_lowest(q.scheme)) : info.lowest;
    highest = integer ? static_cast<float>(code_highest(q.scheme)) : info.highest;
    if (!integer && info.bits <= 4) steps = steps_of(q.scheme);
    minimum = q.scheme.offset == OffsetKind::minimum;
    zero_point = q.scheme.offset == OffsetKind::zero_point;
  }

  // u has room for whole strides of kWide.
  void round(const float* low, const float* high, const float* u, float* v) const {
    const int64_t padded = (q.cols + kWide - 1) / kWide * kWide;
    const Element code = q.scheme.code;
    if (integer) {
      round_integers(low, high, u, v, padded);
    } else if (element_info(code).bits <= 4) {
      round_steps(steps, u, v, padded);
    } else if (code == Element::e4m3) {
      round_minifloat(0x1.8p20f, 0x1p-6f, highest, u, v, padded);
    } else if (code == Element::e5m2) {
      round_minifloat(0x1.8p21f, 0x1p-14f, highest, u, v, padded);
    } else {
      for (int64_t i = 0; i < q.cols; ++i) v[i] = value_of(code, code_of(q.scheme, u[i]));
    }
  }

  const CodedMatrix& q;
  Steps steps{};
  float lowest = 0, highest = 0;
  bool integer = false, minimum = false, zero_point = false;
};

// Buffers of one row, made once a task.
struct Row {
  explicit Row(const Scheme& scheme)
      : all(scheme),
        size((scheme.q.cols + kWide - 1) / kWide * kWide),
        s(size, 1.0f),
        m(size),
        low(size, scheme.lowest),
        high(size, scheme.highest),
        u(size),
        v(size) {}

  // s, m and the range of row r.
  void expand(int64_t r) {
    const CodedMatrix& q = all.q;
    expand_into(q.scheme.scales, q.scales, 0, r, s.data());
    if (q.offsets.empty()) return;
    expand_into(q.scheme.offsets, q.offsets, 0, r, m.data());
    if (!all.zero_point) return;
    for (int64_t c = 0; c < q.cols; ++c) {
      low[c] = all.lowest - m[c];
      high[c] = all.highest - m[c];
    }
  }

  // The product of the levels from `first` on; ones where there is none.
  void expand_into(const std::vector<ScaleLevel>& scheme,
                   const std::vector<CodedLevel>& levels, size_t first, int64_t r,
                   float* out) const {
    const CodedMatrix& q = all.q;
    if (first >= levels.size()) {
      std::fill(out, out + q.cols, 1.0f);
      return;
    }
    const std::vector<ScaleLevel> outer(scheme.begin() + static_cast<int64_t>(first),
                                        scheme.end());
    expand_levels(
        outer, levels[first].shift,
        [&](size_t k, int64_t i) {
          return levels[first + k].values[static_cast<size_t>(i)];
        },
        q.rows, q.cols, r, out);
  }

  const float* minimum() const { return all.minimum ? m.data() : nullptr; }

  // u and v of row r of x; false: x or a scale is not usable.
  bool code(int64_t r, const float* x) {
    expand(r);
    const float* row = x + r * all.q.cols;
    if (!usable(row, s.data(), all.q.cols)) return false;
    divide(row, minimum(), s.data(), u.data(), all.q.cols);
    all.round(low.data(), high.data(), u.data(), v.data());
    return true;
  }

  const Scheme& all;
  int64_t size;
  std::vector<float> s, m, low, high, u, v;
};

int64_t rows_a_part(const CodedMatrix& q) {
  return std::max<int64_t>(1, kPart / std::max<int64_t>(1, q.cols));
}

// What a row gives the values of a level: index, sum.
using Pieces = std::vector<std::pair<int64_t, double>>;
void add_pieces(const CodedMatrix& q, const Block& block, int64_t r, const float* parts,
                const float* outer, Pieces& pieces) {
  for (int64_t c = 0; c < q.cols;) {
    const int64_t end = run_end(block, q.cols, r, c);
    pieces.emplace_back(
        level_index(block, q.rows, q.cols, r, c),
        static_cast<double>(sum_of_products(parts + c, outer + c, end - c)));
    c = end;
  }
}

// kernels/scheme's own words for what is wrong.
[[noreturn]] void complain(CodedMatrix levels, const float* x) {
  throw_if_error(quantize({x, levels.rows, levels.cols}, levels));
  throw Error(error(StatusCode::internal, "[fake_quantize] ", to_string(levels.scheme),
                    ": a usable matrix was refused"));
}

}  // namespace

void any_forward(const CodedMatrix& levels, const float* x, float* y) {
  if (!has_shape(levels, levels.scheme.scales, levels.scales) ||
      !has_shape(levels, levels.scheme.offsets, levels.offsets)) {
    complain(levels, x);
  }
  const Scheme scheme(levels);
  const int64_t step = rows_a_part(levels), parts = (levels.rows + step - 1) / step;
  std::vector<uint8_t> refused(static_cast<size_t>(parts));
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    Row row(scheme);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t last = std::min(levels.rows, (part + 1) * step);
      for (int64_t r = part * step; r < last; ++r) {
        if (!row.code(r, x)) {
          refused[static_cast<size_t>(part)] = 1;
          break;
        }
        multiply(row.v.data(), row.minimum(), row.s.data(), y + r * levels.cols,
                 levels.cols);
      }
    }
  });
  if (std::find(refused.begin(), refused.end(), 1) != refused.end()) complain(levels, x);
}

void any_backward(const CodedMatrix& levels, const float* x, const float* dy, float* dx,
                  std::vector<double>* scale, std::vector<double>* minimum) {
  const Scheme scheme(levels);
  const int64_t step = rows_a_part(levels), parts = (levels.rows + step - 1) / step;
  std::vector<Pieces> scales(static_cast<size_t>(parts)), minima(scales);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    Row row(scheme);
    std::vector<float> inner(row.size), outside(row.size), outer(row.size);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t last = std::min(levels.rows, (part + 1) * step);
      for (int64_t r = part * step; r < last; ++r) {
        const int64_t at = r * levels.cols;
        row.code(r, x);  // forward found it usable
        gradients(row.u.data(), row.v.data(), row.low.data(), row.high.data(), dy + at,
                  dx + at, inner.data(), outside.data(), levels.cols);
        if (scale != nullptr) {
          row.expand_into(levels.scheme.scales, levels.scales, 1, r, outer.data());
          add_pieces(levels, levels.scheme.scales[0].block, r, inner.data(), outer.data(),
                     scales[static_cast<size_t>(part)]);
        }
        if (minimum != nullptr) {
          row.expand_into(levels.scheme.offsets, levels.offsets, 1, r, outer.data());
          add_pieces(levels, levels.scheme.offsets[0].block, r, outside.data(),
                     outer.data(), minima[static_cast<size_t>(part)]);
        }
      }
    }
  });
  for (int64_t part = 0; part < parts; ++part) {
    for (const auto& [i, sum] : scales[static_cast<size_t>(part)])
      (*scale)[static_cast<size_t>(i)] += sum;
    for (const auto& [i, sum] : minima[static_cast<size_t>(part)])
      (*minimum)[static_cast<size_t>(i)] += sum;
  }
}

}  // namespace nibble
