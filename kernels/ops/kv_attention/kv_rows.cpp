#include "kernels/ops/kv_attention/kv_rows.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"
#include "kernels/ops/kv_attention/kv_decode.h"
#include "kernels/ops/kv_attention/kv_pack.h"
#include "kernels/packing/packed_bits.h"
#include "kernels/ops/scratch.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/scheme/element_codec.h"
#include "kernels/scheme/level_runs.h"

namespace nibble {
namespace {

constexpr float kLargestHalf = 65504;
// A cache line, and the widest vector.
constexpr int64_t kCodeGroup = 64;
// Values that one task stores, about: some tens of microseconds of work.
constexpr int64_t kTaskValues = 1 << 15;

// The next head's levels follow those that were read.
void fetch(const uint8_t* from, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(from + b);
}

KvCode kv_code(const QuantScheme& scheme) {
  switch (scheme.code) {
    case Element::int8:
      return KvCode::s8;
    case Element::uint8:
      return KvCode::u8;
    case Element::int4:
      return KvCode::s4;
    case Element::uint4:
      return KvCode::u4;
    case Element::e4m3:
      return KvCode::e4m3;
    case Element::f16:
      return KvCode::f16;
    case Element::bf16:
      return KvCode::bf16;
    default:
      return KvCode::other;
  }
}

KvForm kv_form(const QuantScheme& scheme) {
  if (scheme.is_float()) return KvForm::plain;
  if (scheme.offset == OffsetKind::zero_point) return KvForm::zero_point;
  return scheme.offset == OffsetKind::minimum ? KvForm::minimum : KvForm::scaled;
}

Status out_of_half(int64_t row, int64_t column, float value) {
  return error(StatusCode::out_of_range, "[kv] position ", row, ", column ", column,
               ": a number that f16 holds (the newest block's form) was required; found ",
               value, "; use f32, bf16 or blocks of one position (--kv int8)");
}

}  // namespace

KvBytes::KvBytes(int64_t count, int64_t size, int64_t wanted)
    : rows(count),
      row_bytes(size),
      group(size % wanted == 0 ? wanted : size),
      bytes(static_cast<size_t>(count * size)) {}

void KvBytes::put(int64_t row, const uint8_t* from) {
  for (int64_t b = 0; b < row_bytes; b += group) {
    std::memcpy(bytes.data() + offset(row, b), from + b, static_cast<size_t>(group));
  }
}

const uint8_t* KvBytes::get(int64_t row, int64_t first, int64_t n,
                            uint8_t* scratch) const {
  if (first / group == (first + n - 1) / group) return bytes.data() + offset(row, first);
  for (int64_t b = first; b < first + n;) {
    const int64_t end = std::min(first + n, (b / group + 1) * group);
    std::memcpy(scratch + b - first, bytes.data() + offset(row, b),
                static_cast<size_t>(end - b));
    b = end;
  }
  return scratch;
}

int64_t KvRows::Level::index(int64_t column) const {
  return level.block.kind == Block::Kind::row ? 0 : column / level.block.cols;
}

float KvRows::Level::value(int64_t row, int64_t column) const {
  // A position (or block of positions) has its level values as a row of its own. Groups
  // are whole values, or the row.
  const int bits = element_info(level.element).bits;
  const int64_t first = index(column) * bits / 8 / values.group * values.group;
  return value_of_bits(level.element,
                       bits_at(values.bytes.data() + values.offset(row, first), bits,
                               index(column) - first * 8 / bits));
}

Result<KvRows> KvRows::create(const QuantScheme& scheme, int64_t capacity, int64_t width,
                              float scale) {
  NIBBLE_RETURN_IF_ERROR(validate_kv_scheme(scheme));
  const bool is_static = is_static_kv(scheme);
  if (is_static && !(scale > 0))
    return error(StatusCode::failed_precondition, "[kv] ", to_string(scheme),
                 ": a calibrated scale is required; found none; quantize with --set "
                 "kv=fp8-static and calibration text, or write it: ",
                 to_string(scheme), "=0.05");
  KvRows rows;
  rows.scale_ = scale;
  rows.scheme_ = scheme;
  rows.capacity_ = capacity;
  rows.width_ = width;
  rows.positions_ = kv_block_positions(scheme);
  // Of positions in blocks only whole blocks are ever stored.
  const int64_t stored = capacity / rows.positions_ * rows.positions_;
  const int64_t row_bytes = packed_row_bytes(scheme.code, width);
  // f32 rows are read as a matrix.
  rows.codes_ =
      KvBytes(stored, row_bytes, scheme.code == Element::f32 ? row_bytes : kCodeGroup);
  const auto add = [&](const std::vector<ScaleLevel>& levels, std::vector<Level>& to) {
    for (const ScaleLevel& level : levels) {
      const int64_t bytes = packed_level_bytes(level, rows.positions_, width);
      // A head's, position after position.
      const bool whole = element_info(level.element).bits == 16 && rows.positions_ == 1;
      to.push_back({level, KvBytes(stored / rows.positions_, bytes, whole ? 2 : bytes)});
    }
  };
  if (!is_static) add(scheme.scales, rows.scales_);
  add(scheme.offsets, rows.offsets_);
  if (rows.positions_ > 1)
    rows.partial_.resize(static_cast<size_t>(rows.positions_ * width));
  return rows;
}

int64_t KvRows::bytes_for(const QuantScheme& scheme, int64_t capacity, int64_t width) {
  const int64_t positions = kv_block_positions(scheme);
  const int64_t blocks = capacity / positions;
  int64_t total = blocks * positions * packed_row_bytes(scheme.code, width);
  if (is_static_kv(scheme)) return total;
  for (const std::vector<ScaleLevel>* levels : {&scheme.scales, &scheme.offsets}) {
    for (const ScaleLevel& level : *levels)
      total += blocks * packed_level_bytes(level, positions, width);
  }
  if (positions > 1) total += positions * width * static_cast<int64_t>(sizeof(uint16_t));
  return total;
}

int64_t KvRows::bytes() const {
  size_t total = codes_.bytes.size() + partial_.size() * sizeof(uint16_t);
  for (const std::vector<Level>* levels : {&scales_, &offsets_}) {
    for (const Level& level : *levels) total += level.values.bytes.size();
  }
  return static_cast<int64_t>(total);
}

bool KvRows::store_block(MatrixView<const float> x, int64_t first) {
  const auto level_bytes = [](const std::vector<Level>& levels) {
    return levels.empty() ? 0 : levels[0].values.row_bytes;
  };
  const int64_t scale_bytes = level_bytes(scales_);
  static thread_local Scratch<uint8_t> scratch;
  uint8_t* const scales = scratch.get(static_cast<size_t>(
      scale_bytes + level_bytes(offsets_) + positions_ * codes_.row_bytes));
  uint8_t* const offsets = scales + scale_bytes;
  uint8_t* const codes = offsets + level_bytes(offsets_);
  if (!pack_kv(scheme_, x, scale_, {codes, scales, offsets})) return false;
  for (int64_t r = 0; r < positions_; ++r) {
    codes_.put(first + r, codes + r * codes_.row_bytes);
  }
  if (!scales_.empty()) scales_[0].values.put(first / positions_, scales);
  if (!offsets_.empty()) offsets_[0].values.put(first / positions_, offsets);
  return true;
}

Status KvRows::store(MatrixView<const float> x, int64_t first) {
  if (packs_kv(scheme_)) {
    const int64_t blocks = x.rows / positions_;
    const int64_t step = std::max<int64_t>(1, kTaskValues / (positions_ * width_));
    std::atomic<bool> stored = true;
    parallel_for((blocks + step - 1) / step, [&](int64_t task) {
      for (int64_t b = task * step; b < std::min(blocks, (task + 1) * step); ++b) {
        const int64_t row = b * positions_;
        if (!store_block({x.row(row), positions_, x.cols, x.stride}, first + row))
          stored.store(false, std::memory_order_relaxed);
      }
    });
    if (stored.load(std::memory_order_relaxed)) return ok_status();
  }
  // Any scheme, and what is wrong with numbers that cannot be stored.
  CodedMatrix q{scheme_, x.rows, x.cols, {}, {{1, 1, {scale_}}}, {}};
  if (!is_static_kv(scheme_)) {
    NIBBLE_ASSIGN_OR_RETURN(q, choose_scales(x, scheme_, ScaleRule{}));
  }
  NIBBLE_RETURN_IF_ERROR(quantize(x, q));
  NIBBLE_ASSIGN_OR_RETURN(const PackedTensor packed, pack(q, {x.rows, x.cols}));
  const auto put = [](const auto& from, int64_t row, KvBytes& to) {
    const int64_t rows = static_cast<int64_t>(from.size()) / to.row_bytes;
    for (int64_t r = 0; r < rows; ++r) {
      to.put(row + r, reinterpret_cast<const uint8_t*>(from.data()) + r * to.row_bytes);
    }
  };
  put(packed.codes, first, codes_);
  const auto copy = [&](const std::vector<PackedLevel>& from, std::vector<Level>& to) {
    for (size_t i = 0; i < to.size(); ++i) {
      put(from[i].values, first / positions_, to[i].values);
    }
  };
  copy(packed.scales, scales_);
  copy(packed.offsets, offsets_);
  return ok_status();
}

Status KvRows::append(MatrixView<const float> x) {
  if (x.cols != width_ || length_ + x.rows > capacity_)
    return error(StatusCode::invalid_argument, "[kv] ", x.rows, " rows of ", x.cols,
                 " values were given to a cache of ", capacity_ - length_,
                 " free rows of ", width_);
  if (scheme_.is_float()) {
    static thread_local Scratch<uint8_t> scratch;
    uint8_t* const to = scratch.get(static_cast<size_t>(codes_.row_bytes));
    for (int64_t r = 0; r < x.rows; ++r) {
      if (scheme_.code == Element::f32) {
        codes_.put(length_ + r, reinterpret_cast<const uint8_t*>(x.row(r)));
        continue;
      }
      for (int64_t c = 0; c < width_; ++c) {
        const float value = x(r, c);
        const bool half = scheme_.code == Element::f16;
        if (half && !(std::fabs(value) <= kLargestHalf))
          return out_of_half(length_ + r, c, value);
        const uint16_t bits = half ? f16_from_float(value) : bf16_from_float(value);
        std::memcpy(to + 2 * c, &bits, 2);
      }
      codes_.put(length_ + r, to);
    }
    length_ += x.rows;
    return ok_status();
  }
  if (positions_ == 1) {
    NIBBLE_RETURN_IF_ERROR(store(x, length_));
    length_ += x.rows;
    return ok_status();
  }
  static thread_local Scratch<float> scratch;
  for (int64_t r = 0; r < x.rows; ++r) {
    uint16_t* to = partial_.data() + length_ % positions_ * width_;
    for (int64_t c = 0; c < width_; ++c) {
      if (!(std::fabs(x(r, c)) <= kLargestHalf)) return out_of_half(length_, c, x(r, c));
      to[c] = f16_from_float(x(r, c));
    }
    if ((length_ + 1) % positions_ == 0) {
      float* const block = scratch.get(partial_.size());
      for (size_t i = 0; i < partial_.size(); ++i) block[i] = float_from_f16(partial_[i]);
      NIBBLE_RETURN_IF_ERROR(
          store({block, positions_, width_}, length_ + 1 - positions_));
    }
    ++length_;
  }
  return ok_status();
}

void KvRows::truncate(int64_t length) {
  length = std::clamp<int64_t>(length, 0, length_);
  const int64_t kept = length % positions_;
  // The block that is cut may be a completed one: what is left of it is partial again.
  if (kept > 0 && length / positions_ < length_ / positions_) {
    static thread_local Scratch<float> scratch;
    const size_t count = static_cast<size_t>(kept * width_);
    float* const rows = scratch.get(count);
    read(nullptr, length - kept, 0, {rows, kept, width_});
    for (size_t i = 0; i < count; ++i) {
      partial_[i] = f16_from_float(std::clamp(rows[i], -kLargestHalf, kLargestHalf));
    }
  }
  length_ = length;
}

void KvRows::block_levels(const KvDecodeIsa* isa, int64_t block, int64_t column,
                          int64_t count, float* scales, float* offsets) const {
  if (scale_ > 0) std::fill_n(scales, count, scale_);
  const auto expand = [&](const std::vector<Level>& levels, float* out) {
    for (size_t k = 0; k < levels.size(); ++k) {
      const Level& level = levels[k];
      // Values a column: a row of the cache like any other.
      if (isa != nullptr && k == 0 && level.level.element == Element::f16 &&
          level.level.block.kind == Block::Kind::grid && level.level.block.cols == 1) {
        const uint8_t* from =
            level.values.bytes.data() + level.values.offset(block, 2 * column);
        isa->decode(KvCode::f16, KvForm::plain, from, count, nullptr, nullptr, out);
        fetch(from + 2 * count, 2 * count);
        continue;
      }
      for (int64_t c = column; c < column + count;) {
        const int64_t end =
            std::min(column + count, run_end(level.level.block, width_, 0, c));
        const float value = level.value(block, c);
        for (int64_t i = c - column; i < end - column; ++i) {
          out[i] = k == 0 ? value : out[i] * value;
        }
        c = end;
      }
    }
  };
  expand(scales_, scales);
  expand(offsets_, offsets);
}

void KvRows::read(const KvDecodeIsa* isa, int64_t first, int64_t column,
                  MatrixView<float> x) const {
  const int64_t count = x.cols;
  const int64_t complete = this->complete();
  const KvCode code = kv_code(scheme_);
  const ElementInfo& info = element_info(scheme_.code);
  // A row's codes must begin in a byte of their own for the vectors.
  const bool fast =
      isa != nullptr && code != KvCode::other && column * info.bits % 8 == 0;
  const KvForm form = kv_form(scheme_);
  const bool is_signed = info.kind == ElementKind::integer && info.lowest < 0;
  static thread_local Scratch<float> scratch;
  static thread_local Scratch<uint8_t> code_scratch;
  float* scales = scratch.get(static_cast<size_t>(2 * count));
  float* offsets = scales + count;
  uint8_t* pieces = code_scratch.get(static_cast<size_t>(codes_.row_bytes));
  int64_t expanded = -1;  // the block whose levels are expanded
  for (int64_t r = 0; r < x.rows; ++r) {
    const int64_t row = first + r;
    float* out = x.row(r);
    if (positions_ > 1 && row >= complete) {
      const uint16_t* from = partial_.data() + row % positions_ * width_ + column;
      if (isa != nullptr) {
        isa->decode(KvCode::f16, KvForm::plain, reinterpret_cast<const uint8_t*>(from),
                    count, nullptr, nullptr, out);
      } else {
        for (int64_t c = 0; c < count; ++c) out[c] = float_from_f16(from[c]);
      }
      continue;
    }
    if (scheme_.code == Element::f32) {
      std::memcpy(out, floats() + row * width_ + column, static_cast<size_t>(4 * count));
      continue;
    }
    if (!scheme_.is_float() && row / positions_ != expanded) {
      expanded = row / positions_;
      block_levels(isa, expanded, column, count, scales, offsets);
    }
    if (fast) {
      const uint8_t* codes =
          codes_.get(row, column * info.bits / 8, (count * info.bits + 7) / 8, pieces);
      isa->decode(code, form, codes, count, scales, offsets, out);
      continue;
    }
    const uint8_t* codes = codes_.get(row, 0, codes_.row_bytes, pieces);
    for (int64_t c = 0; c < count; ++c) {
      uint32_t bits = bits_at(codes, info.bits, column + c);
      if (scheme_.is_float()) {
        out[c] = value_of_bits(scheme_.code, bits);
        continue;
      }
      const uint32_t sign = is_signed ? 1u << (info.bits - 1) : 0u;
      const uint8_t byte = static_cast<uint8_t>((bits ^ sign) - sign);
      dequantize_row(scheme_, &byte, scales + c, offsets + c, out + c, 1);
    }
  }
}

bool KvRows::has_codes(int64_t column, int64_t count) const {
  const int bits = element_info(scheme_.code).bits;
  if (kv_code(scheme_) == KvCode::other || column * bits % 8 != 0) return false;
  for (const std::vector<Level>* levels : {&scales_, &offsets_}) {
    for (const Level& level : *levels) {
      if (positions_ == 1 &&
          run_end(level.level.block, width_, 0, column) < column + count)
        return false;
    }
  }
  return true;
}

KvCodes KvRows::codes(int64_t row, int64_t column) const {
  KvCodes found = {.code = kv_code(scheme_), .form = kv_form(scheme_)};
  const int64_t byte = column * bits_of(found.code) / 8;
  const uint8_t* base = codes_.bytes.data();
  found.row_bytes = codes_.group;
  if (codes_.group == kCodeGroup) {
    found.codes = base + codes_.offset(row, byte / kCodeGroup * kCodeGroup);
    found.first = byte % kCodeGroup;
    found.group_bytes = codes_.group_bytes(row);
  } else {
    found.codes = base + codes_.offset(row, byte);
  }
  return found;
}

void KvRows::row_levels(const KvDecodeIsa& isa, int64_t first, int64_t n, int64_t column,
                        float* scales, float* offsets) const {
  if (scale_ > 0) std::fill_n(scales, n, scale_);
  const auto expand = [&](const std::vector<Level>& levels, float* out) {
    for (size_t k = 0; k < levels.size(); ++k) {
      const Level& level = levels[k];
      if (k == 0 && level.level.element == Element::f16) {
        const uint8_t* from = level.values.bytes.data() +
                              level.values.offset(first, 2 * level.index(column));
        isa.decode(KvCode::f16, KvForm::plain, from, n, nullptr, nullptr, out);
        fetch(from + 2 * n, 2 * n);
        continue;
      }
      for (int64_t r = 0; r < n; ++r) {
        const float value = level.value(first + r, column);
        out[r] = k == 0 ? value : out[r] * value;
      }
    }
  };
  expand(scales_, scales);
  expand(offsets_, offsets);
}

}  // namespace nibble
