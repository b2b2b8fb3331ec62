#include "kernels/ops/kv_attention/kv_pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/packing/packed_bits.h"
#include "kernels/ops/scratch.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/scheme/element_codec.h"
#include "kernels/scheme/kv_scheme.h"

namespace nibble {
namespace {

struct Range {
  float lowest = std::numeric_limits<float>::infinity();
  float highest = -std::numeric_limits<float>::infinity();
};

// Eight lanes, joined in order: where zeros of both signs are the lowest the choice
// between them is scale_rules.cpp's, and a minimum of -0 has other bits than one of 0.
void widen(Range& range, const float* x, int64_t n) {
  constexpr int kLanes = 8;
  float low[kLanes], high[kLanes];
  std::fill(low, low + kLanes, range.lowest);
  std::fill(high, high + kLanes, range.highest);
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const float v = x[c + k];
      low[k] = v < low[k] ? v : low[k];
      high[k] = v > high[k] ? v : high[k];
    }
  }
  for (; c < n; ++c) {
    low[0] = std::min(low[0], x[c]);
    high[0] = std::max(high[0], x[c]);
  }
  for (int k = 0; k < kLanes; ++k) {
    range.lowest = std::min(range.lowest, low[k]);
    range.highest = std::max(range.highest, high[k]);
  }
}

bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;  // in integers, which vectorise
  for (int64_t c = 0; c < n; ++c) {
    bad |= (std::bit_cast<uint32_t>(x[c]) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
  }
  return bad == 0;
}

bool is_exact(Element element, float value) {
  return std::isfinite(value) && round_to_element(element, value) == value;
}

// choose_scales' absmax of one block under one level (formulas in coded_matrix.h).
class BlockRule {
 public:
  explicit BlockRule(const QuantScheme& scheme)
      : scheme_(scheme),
        scale_element_(scheme.scales[0].element),
        offset_element_(scheme.offsets.empty() ? scale_element_
                                               : scheme.offsets[0].element),
        integer_(element_info(scheme.code).kind == ElementKind::integer),
        code_lowest_(integer_ ? static_cast<float>(code_lowest(scheme))
                              : element_info(scheme.code).lowest),
        code_highest_(element_info(scheme.code).highest),
        smallest_(smallest_positive(scale_element_)),
        with_zero_(scheme.offset == OffsetKind::zero_point ||
                   (scheme.offset == OffsetKind::minimum &&
                    element_info(offset_element_).lowest >= 0)) {}

  // False: a value that its element does not hold.
  bool choose(const Range& range, float* scale, float* offset) const {
    float low = range.lowest, high = range.highest;
    float wanted = 0;
    if (scheme_.offset == OffsetKind::none) {
      const float above = part(std::max(high, integer_ ? 0.0f : -low), code_highest_);
      const float below = integer_ && code_lowest_ < 0 ? part(-low, -code_lowest_) : 0.0f;
      wanted = std::max(above, below);
    } else {
      if (with_zero_) {
        low = std::min(low, 0.0f);
        high = std::max(high, 0.0f);
      }
      wanted = part(high - low, code_highest_ - code_lowest_);
    }
    const bool zeros = wanted == 0;
    if (!fit(scale_element_, zeros ? 1.0f : wanted, scale)) return false;
    *scale = std::max(*scale, smallest_);
    if (!(std::isfinite(*scale) && *scale > 0)) return false;
    if (scheme_.offset == OffsetKind::minimum) {
      return fit(offset_element_, low - (zeros ? 0.0f : *scale) * code_lowest_, offset);
    }
    if (scheme_.offset == OffsetKind::zero_point) {
      const float z = std::nearbyintf(code_lowest_ - low / *scale);
      *offset = std::clamp(z, static_cast<float>(code_lowest(scheme_)),
                           static_cast<float>(code_highest(scheme_)));
      return is_exact(offset_element_, *offset);
    }
    *offset = 0;
    return true;
  }

 private:
  static float part(float extent, float codes) { return extent > 0 ? extent / codes : 0; }

  // What rounds down to an element's highest value may be 1/32 above it.
  static bool fit(Element element, float value, float* rounded) {
    *rounded = round_to_element(element, value);
    return std::fabs(value) <= element_info(element).highest * 1.03125f &&
           is_exact(element, *rounded);
  }

  const QuantScheme& scheme_;
  Element scale_element_, offset_element_;
  bool integer_;
  float code_lowest_, code_highest_, smallest_;
  bool with_zero_;
};

// Codes, one a byte, to a row's bits. False: one that stands for no number.
bool put_codes(const QuantScheme& scheme, const uint8_t* codes, int64_t n, uint8_t* row) {
  const ElementInfo& info = element_info(scheme.code);
  if (info.kind != ElementKind::integer) {  // integers are clamped
    const auto& values = value_table(scheme.code);
    for (int64_t c = 0; c < n; ++c) {
      if (std::isnan(values[codes[c]])) return false;
    }
  }
  if (info.bits == 8) {
    std::memcpy(row, codes, static_cast<size_t>(n));
  } else {
    put_bits(info.bits, n, [codes](int64_t c) { return codes[c]; }, row);
  }
  return true;
}

void put_level(Element element, const float* values, int64_t n, uint8_t* row) {
  put_bits(
      element_info(element).bits, n,
      [=](int64_t i) { return bits_of_value(element, values[i]); }, row);
}

}  // namespace

bool packs_kv(const QuantScheme& scheme) {
  if (is_static_kv(scheme)) return true;
  if (scheme.scales.size() != 1 || scheme.offsets.size() > 1) return false;
  const ScaleLevel& scale = scheme.scales[0];
  const Block::Kind kind = scale.block.kind;
  if (kind != Block::Kind::row && kind != Block::Kind::group && kind != Block::Kind::grid)
    return false;
  // e8m0 has a rule of its own: powers of two.
  if (scale.shifted || scale.element == Element::e8m0) return false;
  return scheme.offsets.empty() ||
         (scheme.offsets[0].block == scale.block && !scheme.offsets[0].shifted);
}

bool pack_kv(const QuantScheme& scheme, MatrixView<const float> x, float scale,
             const KvPacked& to) {
  if (!packs_kv(scheme) || is_static_kv(scheme) != (scale > 0)) return false;
  for (int64_t r = 0; r < x.rows; ++r) {
    if (!all_finite(x.row(r), x.cols)) return false;
  }
  const int64_t width = x.cols;
  static thread_local Scratch<float> float_scratch;
  static thread_local Scratch<Range> range_scratch;
  static thread_local Scratch<uint8_t> code_scratch;
  float* const scales = float_scratch.get(static_cast<size_t>(4 * width));  // a column
  float* const offsets = scales + width;
  float* const scale_values = offsets + width;  // a block
  float* const offset_values = scale_values + width;
  uint8_t* const codes = code_scratch.get(static_cast<size_t>(width));
  const ScaleLevel& level = scheme.scales[0];
  if (scale > 0) {
    if (!is_exact(level.element, scale)) return false;
    std::fill_n(scales, width, scale);
  } else {
    const int64_t size = level.block.kind == Block::Kind::row ? width : level.block.cols;
    const int64_t blocks = (width + size - 1) / size;
    Range* const ranges = range_scratch.get(static_cast<size_t>(blocks));
    std::fill_n(ranges, blocks, Range{});
    for (int64_t r = 0; r < x.rows; ++r) {
      for (int64_t b = 0; b < blocks; ++b) {
        const float* from = x.row(r) + b * size;
        if (size == 1) {
          ranges[b].lowest = std::min(ranges[b].lowest, *from);
          ranges[b].highest = std::max(ranges[b].highest, *from);
        } else {
          widen(ranges[b], from, std::min(size, width - b * size));
        }
      }
    }
    const BlockRule rule(scheme);
    for (int64_t b = 0; b < blocks; ++b) {
      if (!rule.choose(ranges[b], &scale_values[b], &offset_values[b])) return false;
      const int64_t count = std::min(size, width - b * size);
      std::fill_n(scales + b * size, count, scale_values[b]);
      std::fill_n(offsets + b * size, count, offset_values[b]);
    }
    put_level(level.element, scale_values, blocks, to.scales);
    if (!scheme.offsets.empty()) {
      put_level(scheme.offsets[0].element, offset_values, blocks, to.offsets);
    }
  }
  const int64_t row_bytes = packed_row_bytes(scheme.code, width);
  for (int64_t r = 0; r < x.rows; ++r) {
    quantize_row(scheme, x.row(r), scales, offsets, codes, width);
    if (!put_codes(scheme, codes, width, to.codes + r * row_bytes)) return false;
  }
  return true;
}

}  // namespace nibble
