// How scales and offsets are found from data alone: absmax and the MSE search, for one
// level or several. The formulas are in coded_matrix.h, above choose_scales.
//
//   1  extremes of every innermost block        min x, max x
//   2  wanted scale t (and minimum m) a block   from the extremes
//   3  outer levels, from the innermost out     largest inner value / what its element
//   holds;
//      then rounded from the outermost in
//   4  the innermost value of every block       t / outer, rounded; under the MSE rule,
//   the
//                                               best of the shrunken t
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/base/parallel.h"
#include "kernels/scheme/coded_matrix.h"
#include "kernels/scheme/element_codec.h"
#include "kernels/scheme/level_runs.h"

namespace nibble {
namespace {

// --- 1. extremes

struct Extremes {
  float lowest = std::numeric_limits<float>::infinity();
  float highest = -std::numeric_limits<float>::infinity();
  bool finite = true;

  void join(const Extremes& other) {
    lowest = std::min(lowest, other.lowest);
    highest = std::max(highest, other.highest);
    finite = finite && other.finite;
  }

  // Eight lanes: a single running minimum would not vectorise.
  void add(const float* x, int64_t n) {
    constexpr int kLanes = 8;
    float low[kLanes], high[kLanes];
    std::fill(low, low + kLanes, lowest);
    std::fill(high, high + kLanes, highest);
    uint32_t bad = 0;
    int64_t c = 0;
    for (; c + kLanes <= n; c += kLanes) {
      for (int k = 0; k < kLanes; ++k) {
        const float v = x[c + k];
        low[k] = v < low[k] ? v : low[k];
        high[k] = v > high[k] ? v : high[k];
        bad |= (std::bit_cast<uint32_t>(v) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
      }
    }
    for (; c < n; ++c) {
      low[0] = std::min(low[0], x[c]);
      high[0] = std::max(high[0], x[c]);
      bad |= std::isfinite(x[c]) ? 0u : 1u;
    }
    for (int k = 0; k < kLanes; ++k) {
      lowest = std::min(lowest, low[k]);
      highest = std::max(highest, high[k]);
    }
    finite = finite && bad == 0;
  }
};

constexpr int64_t kPart = 1 << 15;  // elements a unit of work, see coded_matrix.cpp

std::vector<Extremes> block_extremes(MatrixView<const float> x, const Block& block,
                                     int64_t count) {
  std::vector<Extremes> extremes(static_cast<size_t>(count));
  if (block.kind == Block::Kind::tensor) {
    std::vector<Extremes> rows(static_cast<size_t>(x.rows));
    parallel_for(x.rows,
                 [&](int64_t r) { rows[static_cast<size_t>(r)].add(x.row(r), x.cols); });
    for (const Extremes& row : rows) extremes[0].join(row);
    return extremes;
  }
  if (block.kind == Block::Kind::column) {
    constexpr int64_t kColumns = 64;  // walked together, so that memory is read in lines
    parallel_for((x.cols + kColumns - 1) / kColumns, [&](int64_t part) {
      const int64_t end = std::min(x.cols, (part + 1) * kColumns);
      for (int64_t r = 0; r < x.rows; ++r) {
        for (int64_t c = part * kColumns; c < end; ++c) {
          Extremes& e = extremes[static_cast<size_t>(c)];
          const float v = x(r, c);
          e.lowest = std::min(e.lowest, v);
          e.highest = std::max(e.highest, v);
          e.finite = e.finite && std::isfinite(v);
        }
      }
    });
    return extremes;
  }
  const int64_t size = std::max<int64_t>(1, x.rows * x.cols / count);
  const int64_t step = std::max<int64_t>(1, kPart / size);
  parallel_for((count + step - 1) / step, [&](int64_t part) {
    for (int64_t i = part * step; i < std::min(count, (part + 1) * step); ++i) {
      for_each_run(block, x.rows, x.cols, i, [&](int64_t r, int64_t begin, int64_t end) {
        extremes[static_cast<size_t>(i)].add(x.row(r) + begin, end - begin);
      });
    }
  });
  return extremes;
}

Status first_not_finite(MatrixView<const float> x, const QuantScheme& scheme) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      if (std::isfinite(x(r, c))) continue;
      return error(StatusCode::out_of_range, "[scale_rule] ", to_string(scheme), ": row ",
                   r, ", column ", c, ": a finite number is needed; found ", x(r, c));
    }
  }
  return ok_status();
}

// --- 2. what a block wants

bool is_unsigned(Element element) { return element_info(element).lowest >= 0; }

// The scale that makes `extent` just representable by `codes`, both positive; 0 for none.
// power_of_two: OCP MX's floor rule, or the next power up for a table, whose codes end
// at 1.
float scale_of(float extent, float codes, bool power_of_two, bool table) {
  if (!(extent > 0)) return 0;
  if (!power_of_two) return extent / codes;
  int exponent = std::ilogb(extent) - std::ilogb(codes);
  if (table && std::ldexp(1.0f, std::ilogb(extent)) < extent) ++exponent;
  return std::ldexp(1.0f, std::clamp(exponent, -127, 127));
}

struct Wanted {
  float scale = 0;   // t; 0: a block of zeros; below it: the longer side of codes above
  float lowest = 0;  // of the range that codes cover, where there is an offset
};

class Rule {
 public:
  Rule(const QuantScheme& scheme, bool full_range)
      : scheme_(scheme),
        full_range_(full_range && has_signed_scales(scheme)),
        integer_(element_info(scheme.code).kind == ElementKind::integer),
        table_(element_info(scheme.code).kind == ElementKind::table),
        code_lowest_(integer_ ? static_cast<float>(code_lowest(scheme))
                              : element_info(scheme.code).lowest),
        code_highest_(element_info(scheme.code).highest),
        // With outer levels e8m0 rounds a ratio, as any other element does.
        power_of_two_(scheme.scales.size() == 1 &&
                      scheme.scales[0].element == Element::e8m0),
        with_zero_(scheme.offset == OffsetKind::zero_point ||
                   (scheme.offset == OffsetKind::minimum &&
                    is_unsigned(scheme.offsets[0].element) &&
                    !scheme.offsets[0].shifted)) {}

  bool full_range() const { return full_range_; }

  // factor shrinks the range: 1 for absmax. With the full range the sign that needs the
  // smaller scale.
  Wanted wanted(const Extremes& block, float factor) const {
    const Wanted plain = unsigned_wanted(block, factor);
    if (!full_range_) return plain;
    const Wanted turned = turned_wanted(block, factor);
    return -turned.scale < plain.scale ? turned : plain;
  }
  // The same under a negative scale.
  Wanted turned_wanted(const Extremes& block, float factor) const {
    Extremes mirrored = block;
    mirrored.lowest = -block.highest;
    mirrored.highest = -block.lowest;
    return {-unsigned_wanted(mirrored, factor).scale, 0};
  }
  Wanted unsigned_wanted(const Extremes& block, float factor) const {
    float low = block.lowest, high = block.highest;
    if (scheme_.offset == OffsetKind::none) {
      const float above = scale(std::max(high, integer_ ? 0.0f : -low), code_highest_);
      const float below =
          integer_ && code_lowest_ < 0 ? scale(-low, -code_lowest_) : 0.0f;
      return {std::max(above, below) * factor, 0};
    }
    if (with_zero_) {
      low = std::min(low, 0.0f) * factor;
      high = std::max(high, 0.0f) * factor;
    } else if (factor < 1) {  // towards the middle
      const float cut = (high - low) * (1 - factor) / 2;
      low += cut;
      high -= cut;
    }
    return {scale(high - low, code_highest_ - code_lowest_), low};
  }

  float code_lowest_value() const { return code_lowest_; }
  bool power_of_two() const { return power_of_two_; }

 private:
  float scale(float extent, float codes) const {
    return scale_of(extent, codes, power_of_two_, table_);
  }

  const QuantScheme& scheme_;
  bool full_range_, integer_, table_;
  float code_lowest_, code_highest_;
  bool power_of_two_;
  bool with_zero_;
};

// --- 3. levels

// The value at which an inner element is used best: the largest where its resolution is
// absolute, 1 where it is relative over a wide range.
float full_value(Element element) {
  switch (element) {
    case Element::f32:
    case Element::bf16:
    case Element::f16:
    case Element::e8m0:
      return 1;
    default:
      return element_info(element).highest;
  }
}

// The levels of the scale, or of the minimum, of one matrix.
class LevelFit {
 public:
  LevelFit(const std::vector<ScaleLevel>& levels, int64_t rows, int64_t cols,
           bool positive)
      : levels_(levels), rows_(rows), cols_(cols), positive_(positive) {
    for (const ScaleLevel& level : levels) {
      const LevelShape shape = level_shape(level.block, rows, cols);
      CodedLevel values;
      values.rows = shape.rows;
      values.cols = shape.cols;
      values.values.assign(static_cast<size_t>(shape.rows * shape.cols), 0.0f);
      values_.push_back(std::move(values));
    }
  }

  int64_t blocks() const { return static_cast<int64_t>(values_[0].values.size()); }

  // Chooses shift and outer values so that the inner element serves every wanted[i].
  Status fit_outer(const std::vector<float>& wanted) {
    if (levels_[0].shifted) values_[0].shift = shift_of(wanted);
    std::vector<float> inner(wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) inner[i] = wanted[i] - values_[0].shift;
    if (levels_.size() == 1) return ok_status();

    // An unsigned inner element gets its sign, if any, from the outermost level.
    const bool negative =
        !positive_ && is_unsigned(levels_[0].element) && !levels_[0].shifted;
    std::vector<std::vector<float>> targets(levels_.size());
    targets[0] = std::move(inner);
    for (size_t k = 1; k < levels_.size(); ++k) {
      targets[k].assign(values_[k].values.size(), 0.0f);
      const float full = full_value(levels_[k - 1].element);
      for (int64_t i = 0; i < blocks(); ++i) {
        float& outer = targets[k][place(k, i)];
        outer = std::max(outer, std::fabs(targets[k - 1][place(k - 1, i)]) / full);
      }
    }
    for (size_t k = levels_.size() - 1; k >= 1; --k) {
      const Element element = levels_[k].element;
      std::vector<char> done(values_[k].values.size(), 0);
      for (int64_t i = 0; i < blocks(); ++i) {
        const size_t at = place(k, i);
        if (done[at] != 0) continue;
        done[at] = 1;
        float target = targets[k][at];
        if (target == 0)
          target = k + 1 == levels_.size() ? 1.0f : 0.0f;  // nothing but zeros
        if (k + 1 == levels_.size())
          NIBBLE_RETURN_IF_ERROR(check_fits(element, target, i));
        const float rest = outer_product(k + 1, i);
        float value = round_to_element(element, target / std::fabs(rest));
        value = std::max(value, smallest_positive(element));
        values_[k].values[at] = negative && k + 1 == levels_.size() ? -value : value;
      }
    }
    return ok_status();
  }

  // The innermost value for block i that comes nearest to `wanted`, and what then governs
  // the block. A scale comes out finite and positive, or out_of_range.
  Status fit_inner(int64_t i, float wanted, float* value, float* effective) const {
    const Element element = levels_[0].element;
    if (levels_.size() == 1) {
      NIBBLE_RETURN_IF_ERROR(check_fits(element, std::fabs(wanted), i));
    }
    const float outer = outer_product(1, i);
    float v = round_to_element(element, (wanted - values_[0].shift) / outer);
    if (positive_ && !levels_[0].shifted) v = std::max(v, smallest_positive(element));
    float e = effective_value(i, v);
    // A shifted scale may miss by more than it is: take the next value up until it is
    // positive.
    for (int step = 0; positive_ && levels_[0].shifted && !(e > 0) && step < 256;
         ++step) {
      v = next_above(element, v);
      e = effective_value(i, v);
    }
    if (positive_ && !(std::isfinite(e) && e > 0)) {
      return error(StatusCode::out_of_range, "[scale_rule] ", position(i),
                   ": a scale must be finite and positive; ", element_info(element).text,
                   " gives ", e, " for ", wanted, "; use f32 scales");
    }
    *value = v;
    *effective = e;
    return ok_status();
  }

  void set(int64_t i, float value) { values_[0].values[static_cast<size_t>(i)] = value; }
  std::vector<CodedLevel> take() { return std::move(values_); }

 private:
  size_t place(size_t k, int64_t i) const {
    if (k == 0) return static_cast<size_t>(i);
    int64_t r = 0, c = 0;
    corner(i, &r, &c);
    return static_cast<size_t>(level_index(levels_[k].block, rows_, cols_, r, c));
  }

  // The first element of innermost block i.
  void corner(int64_t i, int64_t* r, int64_t* c) const {
    const Block& block = levels_[0].block;
    const int64_t across = values_[0].cols;
    switch (block.kind) {
      case Block::Kind::tensor:
        *r = *c = 0;
        return;
      case Block::Kind::row:
        *r = i, *c = 0;
        return;
      case Block::Kind::column:
        *r = 0, *c = i;
        return;
      case Block::Kind::group:
      case Block::Kind::grid:
        *r = i / across * block.rows, *c = i % across * block.cols;
        return;
      case Block::Kind::flat:
        *r = i * block.cols / cols_, *c = i * block.cols % cols_;
        return;
    }
  }

  std::string position(int64_t i) const {
    int64_t r = 0, c = 0;
    corner(i, &r, &c);
    return cat("row ", r, ", column ", c);
  }

  float shift_of(const std::vector<float>& wanted) const {
    if (is_unsigned(levels_[0].element))
      return *std::min_element(wanted.begin(), wanted.end());
    double sum = 0;
    for (const float w : wanted) sum += w;
    return static_cast<float>(sum / static_cast<double>(wanted.size()));
  }

  float outer_product(size_t first, int64_t i) const {
    float product = 1;
    for (size_t k = first; k < levels_.size(); ++k)
      product *= values_[k].values[place(k, i)];
    return product;
  }

  // In the order of expand_levels, so that codes are made with the very float they are
  // read with.
  float effective_value(int64_t i, float value) const {
    for (size_t k = 1; k < levels_.size(); ++k) value *= values_[k].values[place(k, i)];
    return levels_[0].shifted ? value + values_[0].shift : value;
  }

  // The outermost level has nothing above it that could take up a larger number.
  Status check_fits(Element element, float magnitude, int64_t i) const {
    const float highest = element_info(element).highest;
    // A little above still rounds down to it: 1/32 is less than half a step of any
    // element that may stand here (e5m2's is 1/16, e4m3's 1/32 of its highest value).
    if (magnitude <= highest * 1.03125f &&
        std::isfinite(round_to_element(element, magnitude))) {
      return ok_status();
    }
    return error(StatusCode::out_of_range, "[scale_rule] ", position(i), ": a value of ",
                 magnitude, " must fit ", element_info(element).text, " (at most ",
                 highest, "); use bf16 or f32, or add an outer level");
  }

  static float next_above(Element element, float value) {
    float next = std::numeric_limits<float>::infinity();
    if (element_info(element).bits > 8)
      return std::nextafter(value + std::fabs(value) / 256, next);
    for (const float candidate : value_table(element)) {
      if (candidate > value && candidate < next) next = candidate;
    }
    return std::isfinite(next) ? next : value;
  }

  const std::vector<ScaleLevel>& levels_;
  int64_t rows_, cols_;
  bool positive_;  // a scale; else a minimum
  std::vector<CodedLevel> values_;
};

// --- 4. one block

// A block's elements, gathered, with room for coding them.
struct Gathered {
  std::vector<float> x, weight, scale, offset, decoded;
  std::vector<uint8_t> codes;

  void fill(MatrixView<const float> from, std::span<const float> importance,
            const Block& block, int64_t i) {
    x.clear();
    weight.clear();
    for_each_run(block, from.rows, from.cols, i,
                 [&](int64_t r, int64_t begin, int64_t end) {
                   x.insert(x.end(), from.row(r) + begin, from.row(r) + end);
                   if (importance.empty()) return;
                   weight.insert(weight.end(), importance.begin() + begin,
                                 importance.begin() + end);
                 });
    scale.resize(x.size());
    offset.resize(x.size());
    decoded.resize(x.size());
    codes.resize(x.size());
  }

  double error(const QuantScheme& scheme, float s, float o, double norm) {
    const int64_t n = static_cast<int64_t>(x.size());
    std::fill(scale.begin(), scale.end(), s);
    std::fill(offset.begin(), offset.end(), o);
    quantize_row(scheme, x.data(), scale.data(), offset.data(), codes.data(), n);
    dequantize_row(scheme, codes.data(), scale.data(), offset.data(), decoded.data(), n);
    constexpr int kLanes = 4;  // a fixed order of summation that vectorises
    double sum[kLanes] = {};
    for (int64_t c = 0; c < n; ++c) {
      const double e =
          std::fabs(static_cast<double>(x[c]) - static_cast<double>(decoded[c]));
      const double w = weight.empty() ? 1.0 : static_cast<double>(weight[c]);
      sum[c % kLanes] += w * (norm == 2.0 ? e * e : std::pow(e, norm));
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
};

struct Choice {
  float scale_value = 0, scale = 0;  // what the innermost level stores; what governs
  float offset_value = 0, offset = 0;
};

class Chooser {
 public:
  Chooser(MatrixView<const float> x, const QuantScheme& scheme, const ScaleRule& rule,
          std::span<const float> importance)
      : x_(x),
        scheme_(scheme),
        rule_(rule),
        importance_(importance),
        formula_(scheme, rule.full_range) {}

  Result<CodedMatrix> run() {
    const int64_t blocks = scales_.blocks();
    extremes_ = block_extremes(x_, scheme_.scales[0].block, blocks);
    for (const Extremes& e : extremes_) {
      if (!e.finite) return first_not_finite(x_, scheme_);
    }
    std::vector<float> wanted(extremes_.size()), minimum(extremes_.size());
    for (size_t i = 0; i < wanted.size(); ++i) {
      const Wanted w = formula_.wanted(extremes_[i], 1.0f);
      wanted[i] = w.scale;
      minimum[i] = minimum_of(w, w.scale);
    }
    NIBBLE_RETURN_IF_ERROR(scales_.fit_outer(wanted));
    if (scheme_.offset == OffsetKind::minimum) {
      NIBBLE_RETURN_IF_ERROR(minima_.fit_outer(minimum));
    }
    choices_.resize(extremes_.size());
    NIBBLE_RETURN_IF_ERROR(rule_.kind == ScaleRule::Kind::absmax ? choose_absmax()
                                                                 : choose_mse());
    return result();
  }

 private:
  float minimum_of(const Wanted& w, float scale) const {
    return w.lowest - scale * formula_.code_lowest_value();
  }

  // What the block gets when it asks for `w`.
  Result<Choice> choice_for(int64_t i, const Wanted& w) const {
    Choice choice;
    // One level: a block of zeros is coded with scale 1. Several: with the smallest
    // value.
    const float wanted = w.scale == 0 && scheme_.scales.size() == 1 ? 1.0f : w.scale;
    NIBBLE_RETURN_IF_ERROR(
        scales_.fit_inner(i, std::fabs(wanted), &choice.scale_value, &choice.scale));
    if (wanted < 0) {
      choice.scale_value = -choice.scale_value;
      choice.scale = -choice.scale;
    }
    if (scheme_.offset == OffsetKind::minimum) {
      NIBBLE_RETURN_IF_ERROR(
          minima_.fit_inner(i, minimum_of(w, w.scale == 0 ? 0.0f : choice.scale),
                            &choice.offset_value, &choice.offset));
    } else if (scheme_.offset == OffsetKind::zero_point) {
      const float z =
          std::nearbyintf(formula_.code_lowest_value() - w.lowest / choice.scale);
      choice.offset = choice.offset_value =
          std::clamp(z, static_cast<float>(code_lowest(scheme_)),
                     static_cast<float>(code_highest(scheme_)));
    }
    return choice;
  }

  Status first_failure(std::vector<Status>& outcomes) const {
    for (Status& outcome : outcomes) {
      if (!outcome.ok()) return std::move(outcome);
    }
    return ok_status();
  }

  Status choose_absmax() {
    const int64_t count = scales_.blocks();
    constexpr int64_t kBlocks = 4096;
    std::vector<Status> outcomes(static_cast<size_t>((count + kBlocks - 1) / kBlocks));
    parallel_for(static_cast<int64_t>(outcomes.size()), [&](int64_t part) {
      for (int64_t i = part * kBlocks; i < std::min(count, (part + 1) * kBlocks); ++i) {
        const size_t at = static_cast<size_t>(i);
        Result<Choice> choice = choice_for(i, formula_.wanted(extremes_[at], 1.0f));
        if (!choice.ok()) {
          outcomes[static_cast<size_t>(part)] = choice.status();
          return;
        }
        choices_[at] = *choice;
      }
    });
    return first_failure(outcomes);
  }

  // The candidates of one block, absmax's own first.
  std::vector<Wanted> candidates(int64_t i) const {
    const Extremes& block = extremes_[static_cast<size_t>(i)];
    std::vector<Wanted> all = {formula_.wanted(block, 1.0f)};
    if (formula_.power_of_two()) {  // the neighbours: shrinking by less changes nothing
      for (const float factor : {2.0f, 0.5f, 0.25f}) {
        Wanted w = all[0];
        w.scale *= factor;
        all.push_back(w);
      }
      return all;
    }
    if (formula_.full_range())
      all = {formula_.unsigned_wanted(block, 1.0f), formula_.turned_wanted(block, 1.0f)};
    for (int step = 1; step <= rule_.mse_steps; ++step) {
      const auto factor =
          static_cast<float>(1.0 - (1.0 - rule_.mse_lowest) * step / rule_.mse_steps);
      all.push_back(formula_.unsigned_wanted(block, factor));
      if (formula_.full_range()) all.push_back(formula_.turned_wanted(block, factor));
    }
    return all;
  }

  Result<Choice> best_of(int64_t i, Gathered& room) const {
    Choice best, last;
    double least = std::numeric_limits<double>::infinity();
    for (const Wanted& w : candidates(i)) {
      NIBBLE_ASSIGN_OR_RETURN(const Choice choice, choice_for(i, w));
      if (choice.scale == last.scale && choice.offset == last.offset) continue;
      last = choice;
      const double e = room.error(scheme_, choice.scale, choice.offset, rule_.mse_norm);
      if (e >= least) continue;  // the earliest of equals
      least = e;
      best = choice;
    }
    return best;
  }

  Status choose_mse() {
    const Block& block = scheme_.scales[0].block;
    const int64_t count = scales_.blocks();
    const int64_t size = std::max<int64_t>(1, x_.rows * x_.cols / count);
    const int64_t step = std::max<int64_t>(1, 4096 / size);
    std::vector<Status> outcomes(static_cast<size_t>((count + step - 1) / step));
    parallel_for(static_cast<int64_t>(outcomes.size()), [&](int64_t part) {
      Gathered room;
      for (int64_t i = part * step; i < std::min(count, (part + 1) * step); ++i) {
        room.fill(x_, importance_, block, i);
        Result<Choice> choice = best_of(i, room);
        if (!choice.ok()) {
          outcomes[static_cast<size_t>(part)] = choice.status();
          return;
        }
        choices_[static_cast<size_t>(i)] = *choice;
      }
    });
    return first_failure(outcomes);
  }

  CodedMatrix result() {
    CodedMatrix q;
    q.scheme = scheme_;
    q.rows = x_.rows;
    q.cols = x_.cols;
    for (size_t i = 0; i < choices_.size(); ++i) {
      scales_.set(static_cast<int64_t>(i), choices_[i].scale_value);
      if (scheme_.offset != OffsetKind::none) {
        minima_.set(static_cast<int64_t>(i), choices_[i].offset_value);
      }
    }
    q.scales = scales_.take();
    if (scheme_.offset != OffsetKind::none) q.offsets = minima_.take();
    return q;
  }

  MatrixView<const float> x_;
  const QuantScheme& scheme_;
  const ScaleRule& rule_;
  std::span<const float> importance_;
  Rule formula_;
  LevelFit scales_{scheme_.scales, x_.rows, x_.cols, true};
  // Zero points are stored by it too; where there is no offset it is a stand-in never
  // read.
  LevelFit minima_{scheme_.offset == OffsetKind::none ? scheme_.scales : scheme_.offsets,
                   x_.rows, x_.cols, false};
  std::vector<Extremes> extremes_;
  std::vector<Choice> choices_;
};

}  // namespace

Result<CodedMatrix> choose_scales(MatrixView<const float> x, const QuantScheme& scheme,
                                  const ScaleRule& rule,
                                  std::span<const float> importance) {
  NIBBLE_RETURN_IF_ERROR(validate_scheme(scheme));
  if (scheme.is_float()) {
    return error(StatusCode::invalid_argument, "[scale_rule] ", to_string(scheme),
                 ": a scheme with a scale is needed; this one is stored as plain floats");
  }
  if (x.rows < 1 || x.cols < 1) {
    return error(StatusCode::invalid_argument, "[scale_rule] ", to_string(scheme),
                 ": a matrix with elements is needed; found [", x.rows, ", ", x.cols,
                 "]");
  }
  if (!importance.empty() && static_cast<int64_t>(importance.size()) != x.cols) {
    return error(StatusCode::invalid_argument, "[scale_rule] ", to_string(scheme),
                 ": importance must have one weight a column, ", x.cols, "; found ",
                 importance.size());
  }
  if (rule.kind == ScaleRule::Kind::mse && !(rule.mse_steps >= 1 && rule.mse_lowest > 0 &&
                                             rule.mse_lowest <= 1 && rule.mse_norm > 0)) {
    return error(
        StatusCode::invalid_argument,
        "[scale_rule] mse: steps >= 1, 0 < lowest <= 1 and norm > 0 are needed; found ",
        rule.mse_steps, ", ", rule.mse_lowest, " and ", rule.mse_norm);
  }
  return Chooser(x, scheme, rule, importance).run();
}

}  // namespace nibble
