#include "kernels/packing/packed_tensor.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"
#include "kernels/packing/packed_bits.h"
#include "kernels/scheme/element_codec.h"
#include "kernels/scheme/level_runs.h"

namespace nibble {
namespace {

// --- one row of b-bit codes as a little-endian bit string (packed_bits.h)

// put(i, bits) for each of n values; returns the unused bits of the last byte.
template <class Put>
uint64_t read_bits(int bits, int64_t n, const std::byte* in, Put put) {
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  uint64_t window = 0;
  int filled = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (; filled < bits; filled += 8) {
      window |= static_cast<uint64_t>(std::to_integer<uint8_t>(*in++)) << filled;
    }
    put(i, static_cast<uint32_t>(window & mask));
    window >>= bits;
    filled -= bits;
  }
  return window;
}

// The code byte (CodedMatrix) of stored bits, for signed integers with the sign extended.
struct CodeBytes {
  explicit CodeBytes(const QuantScheme& scheme) {
    const ElementInfo& info = element_info(scheme.code);
    bits = info.bits;
    is_signed = info.kind == ElementKind::integer && info.lowest < 0;
    unused_lowest =
        scheme.narrow ? static_cast<uint8_t>(static_cast<int>(info.lowest)) : 0;
    narrow = scheme.narrow;
    for (int code = 0; code < 256; ++code) {
      const uint8_t byte = static_cast<uint8_t>(code);
      valid[code] =
          !std::isnan(value_of(scheme.code, byte)) && !(narrow && byte == unused_lowest);
      all_valid &= valid[code];
    }
    for (uint32_t stored = 0; stored < 1u << bits; ++stored) {
      if (!valid[byte_of(stored)]) invalid.push_back(byte_of(stored));
    }
  }

  // Do all of a row's unpacked codes stand for numbers?
  bool are_valid(const uint8_t* row, int64_t n) const {
    if (invalid.empty()) return true;
    uint8_t bad = 0;
    if (invalid.size() <= 2) {  // e4m3's two NaN, the unused code of a narrow scheme
      const uint8_t first = invalid.front(), last = invalid.back();
      for (int64_t c = 0; c < n; ++c)
        bad |= static_cast<uint8_t>((row[c] == first) | (row[c] == last));
    } else {
      for (int64_t c = 0; c < n; ++c) bad |= static_cast<uint8_t>(!valid[row[c]]);
    }
    return bad == 0;
  }

  uint8_t byte_of(uint32_t stored) const {
    if (!is_signed) return static_cast<uint8_t>(stored);
    const uint32_t sign = 1u << (bits - 1);
    return static_cast<uint8_t>((stored ^ sign) - sign);
  }

  int bits;
  bool is_signed, narrow;
  uint8_t unused_lowest;
  bool valid[256], all_valid = true;
  std::vector<uint8_t> invalid;  // of the patterns of `bits` bits
};

// A row of n codes, one a byte; returns the unused bits of the last byte. Codes of 8 and 4
// bits, which most are, by the byte.
uint64_t unpack_row(const CodeBytes& code, int64_t n, const std::byte* in, uint8_t* out) {
  if (code.bits == 8) {
    std::memcpy(out, in, static_cast<size_t>(n));
    return 0;
  }
  if (code.bits == 4) {
    const uint8_t sign = code.is_signed ? 8 : 0;
    for (int64_t i = 0; i < n / 2; ++i) {
      const auto byte = std::to_integer<uint8_t>(in[i]);
      out[2 * i] = static_cast<uint8_t>(((byte & 15) ^ sign) - sign);
      out[2 * i + 1] = static_cast<uint8_t>(((byte >> 4) ^ sign) - sign);
    }
    if (n % 2 == 0) return 0;
    const auto last = std::to_integer<uint8_t>(in[n / 2]);
    out[n - 1] = code.byte_of(last & 15);
    return last >> 4;
  }
  return read_bits(code.bits, n, in,
                   [&](int64_t c, uint32_t stored) { out[c] = code.byte_of(stored); });
}

// The way back; false where a code stands for no number.
bool pack_row(const CodeBytes& code, int64_t n, const uint8_t* in, uint8_t* out) {
  bool valid = true;
  for (int64_t i = 0; i < n && !code.all_valid; ++i) valid &= code.valid[in[i]];
  if (code.bits == 8) {
    std::memcpy(out, in, static_cast<size_t>(n));
  } else if (code.bits == 4) {
    for (int64_t i = 0; i < n / 2; ++i) {
      out[i] = static_cast<uint8_t>((in[2 * i] & 15) | in[2 * i + 1] << 4);
    }
    if (n % 2 == 1) out[n / 2] = in[n - 1] & 15;
  } else {
    put_bits(code.bits, n, [&](int64_t c) { return in[c]; }, out);
  }
  return valid;
}

std::string where(const QuantScheme& scheme, int64_t rows, int64_t cols) {
  return cat("[packing] ", to_string(scheme), " [", rows, ", ", cols, "]");
}

std::string where(const PackedTensor& packed) {
  return where(packed.scheme, packed.rows, packed.cols);
}

// kPart elements a unit of work, as in coded_matrix.cpp.
int64_t rows_a_part(int64_t cols) {
  return std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, cols));
}

// --- levels

int64_t level_row_bytes(const ScaleLevel& level, int64_t cols) {
  return packed_row_bytes(level.element, cols);
}

Result<PackedLevel> pack_level(const ScaleLevel& level, const CodedLevel& values,
                               const std::string& place) {
  const int bits = element_info(level.element).bits;
  const int64_t row_bytes = level_row_bytes(level, values.cols);
  for (size_t i = 0; i < values.values.size(); ++i) {
    const float v = values.values[i];
    const float stored = value_of_bits(level.element, bits_of_value(level.element, v));
    if (!std::isfinite(v) || stored != v) {
      return error(StatusCode::invalid_argument, place, ": value ", i,
                   " must be exactly ", element_info(level.element).text, "; found ", v,
                   "; round it with round_to_element");
    }
  }
  std::byte* out = nullptr;
  PackedLevel packed;
  packed.values = Bytes::allocate(static_cast<size_t>(values.rows * row_bytes), &out);
  packed.shift = values.shift;
  for (int64_t r = 0; r < values.rows; ++r) {
    const float* row = values.values.data() + r * values.cols;
    put_bits(
        bits, values.cols,
        [&](int64_t c) { return bits_of_value(level.element, row[c]); },
        reinterpret_cast<uint8_t*>(out + r * row_bytes));
  }
  return packed;
}

// What most scales are; false: another element.
bool read_floats(Element element, int64_t n, const std::byte* in, float* out) {
  if (element == Element::f32) {
    std::memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
    return true;
  }
  if (element != Element::f16 && element != Element::bf16) return false;
  for (int64_t i = 0; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, in + 2 * i, sizeof(bits));
    out[i] = element == Element::f16 ? float_from_f16(bits) : float_from_bf16(bits);
  }
  return true;
}

Result<CodedLevel> unpack_level(const ScaleLevel& level, const PackedLevel& packed,
                                int64_t rows, int64_t cols, const std::string& place) {
  const LevelShape shape = level_shape(level.block, rows, cols);
  const int bits = element_info(level.element).bits;
  const int64_t row_bytes = level_row_bytes(level, shape.cols);
  CodedLevel values;
  values.rows = shape.rows;
  values.cols = shape.cols;
  values.shift = packed.shift;
  values.values.resize(static_cast<size_t>(shape.rows * shape.cols));
  float value_of_code[256];  // where there are so few
  for (uint32_t stored = 0; bits <= 8 && stored < 1u << bits; ++stored)
    value_of_code[stored] = value_of_bits(level.element, stored);
  for (int64_t r = 0; r < shape.rows; ++r) {
    float* row = values.values.data() + r * shape.cols;
    const std::byte* stored_row = packed.values.data() + r * row_bytes;
    const uint64_t padding =
        read_floats(level.element, shape.cols, stored_row, row)
            ? 0
            : read_bits(bits, shape.cols, stored_row, [&](int64_t c, uint32_t stored) {
                row[c] = bits <= 8 ? value_of_code[stored]
                                   : value_of_bits(level.element, stored);
              });
    if (padding != 0) {
      return error(StatusCode::data_loss, place, ": padding bits after row ", r,
                   " must be zero; found others; the data is damaged");
    }
    for (int64_t c = 0; c < shape.cols; ++c) {
      if (std::isfinite(row[c])) continue;
      return error(StatusCode::data_loss, place, ": value ", r * shape.cols + c,
                   " must be finite; found ", row[c], "; the data is damaged");
    }
  }
  return values;
}

std::string level_place(const std::string& place, const char* what, size_t k) {
  return cat(place, ": ", what, " level ", k);
}

Status check_level_sizes(const PackedTensor& packed,
                         const std::vector<ScaleLevel>& levels,
                         const std::vector<PackedLevel>& values, const char* what) {
  if (levels.size() != values.size()) {
    return error(StatusCode::data_loss, where(packed), ": ", levels.size(), " ", what,
                 " levels are needed; found ", values.size());
  }
  for (size_t k = 0; k < levels.size(); ++k) {
    const int64_t needed = packed_level_bytes(levels[k], packed.rows, packed.cols);
    if (static_cast<int64_t>(values[k].values.size()) != needed) {
      return error(StatusCode::data_loss, level_place(where(packed), what, k), ": ",
                   needed, " bytes are needed; found ", values[k].values.size());
    }
    if (!std::isfinite(values[k].shift) || (!levels[k].shifted && values[k].shift != 0)) {
      return error(StatusCode::data_loss, level_place(where(packed), what, k),
                   levels[k].shifted ? ": a finite shift is needed; found "
                                     : ": this level has no shift; found ",
                   values[k].shift);
    }
  }
  return ok_status();
}

Status unpack_rows(const PackedTensor& packed, const CodeBytes& code, int64_t first,
                   int64_t rows, uint8_t* codes) {
  const int64_t row_bytes = packed_row_bytes(packed.scheme.code, packed.cols);
  for (int64_t r = first; r < first + rows; ++r) {
    uint8_t* row = codes + (r - first) * packed.cols;
    const uint64_t padding =
        unpack_row(code, packed.cols, packed.codes.data() + r * row_bytes, row);
    if (padding != 0) {
      return error(StatusCode::data_loss, where(packed), ": padding bits after row ", r,
                   " must be zero; found others; the data is damaged");
    }
    if (code.are_valid(row, packed.cols)) continue;
    const auto bad =
        std::find_if(row, row + packed.cols, [&](uint8_t b) { return !code.valid[b]; });
    return error(StatusCode::data_loss, where(packed), ": row ", r, ", column ",
                 bad - row, ": a code of ", element_info(packed.scheme.code).text,
                 " is needed; found byte ", static_cast<int>(*bad),
                 ", which stands for no number; the data is damaged");
  }
  return ok_status();
}

// Reads single values of packed levels, for a row at a time.
class LevelReader {
 public:
  LevelReader(const std::vector<ScaleLevel>& levels,
              const std::vector<PackedLevel>& packed, int64_t rows, int64_t cols)
      : levels_(levels), packed_(packed), rows_(rows), cols_(cols) {
    for (const ScaleLevel& level : levels)
      level_cols_.push_back(level_shape(level.block, rows, cols).cols);
  }

  void expand(int64_t r, float* out) const {
    if (levels_.empty()) return;
    expand_levels(
        levels_, packed_[0].shift, [&](size_t k, int64_t i) { return value(k, i); },
        rows_, cols_, r, out);
  }

 private:
  float value(size_t k, int64_t i) const {
    const Element element = levels_[k].element;
    const int64_t cols = level_cols_[k];
    const std::byte* row =
        packed_[k].values.data() + i / cols * level_row_bytes(levels_[k], cols);
    return value_of_bits(element, bits_at(reinterpret_cast<const uint8_t*>(row), element_info(element).bits,
                                  i % cols));
  }

  const std::vector<ScaleLevel>& levels_;
  const std::vector<PackedLevel>& packed_;
  int64_t rows_, cols_;
  std::vector<int64_t> level_cols_;
};

}  // namespace

void PackedTensor::release_pages() const {
  codes.release_pages();
  for (const PackedLevel& level : scales) level.values.release_pages();
  for (const PackedLevel& level : offsets) level.values.release_pages();
}

int64_t PackedTensor::bytes() const {
  int64_t total = static_cast<int64_t>(codes.size());
  for (size_t k = 0; k < scales.size(); ++k) {
    total += static_cast<int64_t>(scales[k].values.size()) +
             (scheme.scales[k].shifted ? 4 : 0);
  }
  for (size_t k = 0; k < offsets.size(); ++k) {
    total += static_cast<int64_t>(offsets[k].values.size()) +
             (scheme.offsets[k].shifted ? 4 : 0);
  }
  return total;
}

int64_t packed_row_bytes(Element element, int64_t cols) {
  return (cols * element_info(element).bits + 7) / 8;
}

int64_t packed_level_bytes(const ScaleLevel& level, int64_t rows, int64_t cols) {
  const LevelShape shape = level_shape(level.block, rows, cols);
  return shape.rows * level_row_bytes(level, shape.cols);
}

Result<PackedTensor> pack(const CodedMatrix& q, std::vector<int64_t> shape) {
  NIBBLE_RETURN_IF_ERROR(validate_scheme(q.scheme));
  const std::string place = where(q.scheme, q.rows, q.cols);
  PackedTensor packed;
  packed.scheme = q.scheme;
  packed.rows = q.rows;
  packed.cols = q.cols;
  packed.shape = std::move(shape);
  if (q.scheme.is_float()) {
    return error(StatusCode::invalid_argument, place,
                 ": plain floats are stored as a tensor, not packed");
  }
  if (static_cast<int64_t>(q.codes.size()) != q.rows * q.cols ||
      q.scales.size() != q.scheme.scales.size() ||
      q.offsets.size() != q.scheme.offsets.size()) {
    return error(StatusCode::invalid_argument, place, ": ", q.rows * q.cols, " codes, ",
                 q.scheme.scales.size(), " scale and ", q.scheme.offsets.size(),
                 " offset levels are needed; found ", q.codes.size(), ", ",
                 q.scales.size(), " and ", q.offsets.size());
  }
  const CodeBytes code(q.scheme);
  const int64_t row_bytes = packed_row_bytes(q.scheme.code, q.cols);
  std::atomic<bool> all_valid{true};
  std::byte* out = nullptr;
  packed.codes = Bytes::allocate(static_cast<size_t>(q.rows * row_bytes), &out);
  const int64_t step = rows_a_part(q.cols);
  parallel_for((q.rows + step - 1) / step, [&](int64_t part) {
    for (int64_t r = part * step; r < std::min(q.rows, (part + 1) * step); ++r) {
      const uint8_t* row = q.codes.data() + r * q.cols;
      if (!pack_row(code, q.cols, row, reinterpret_cast<uint8_t*>(out + r * row_bytes))) {
        all_valid.store(false, std::memory_order_relaxed);
      }
    }
  });
  for (size_t i = 0; i < q.codes.size() && !all_valid.load(); ++i) {
    if (code.valid[q.codes[i]]) continue;
    return error(StatusCode::invalid_argument, place, ": code ", i,
                 " must stand for a number of ", to_string(q.scheme), "; found byte ",
                 static_cast<int>(q.codes[i]));
  }
  for (size_t k = 0; k < q.scales.size(); ++k) {
    NIBBLE_ASSIGN_OR_RETURN(
        PackedLevel level,
        pack_level(q.scheme.scales[k], q.scales[k], level_place(place, "scale", k)));
    packed.scales.push_back(std::move(level));
  }
  for (size_t k = 0; k < q.offsets.size(); ++k) {
    NIBBLE_ASSIGN_OR_RETURN(
        PackedLevel level,
        pack_level(q.scheme.offsets[k], q.offsets[k], level_place(place, "offset", k)));
    packed.offsets.push_back(std::move(level));
  }
  Status sizes = check_packed(packed);
  if (!sizes.ok()) return Status(StatusCode::invalid_argument, sizes.message());
  return packed;
}

Result<CodedMatrix> unpack(const PackedTensor& packed) {
  CodedMatrix q;
  NIBBLE_RETURN_IF_ERROR(unpack(packed, q));
  return q;
}

Status unpack(const PackedTensor& packed, CodedMatrix& q) {
  NIBBLE_RETURN_IF_ERROR(unpack_levels(packed, q));
  q.codes.resize(static_cast<size_t>(q.rows * q.cols));
  const CodeBytes code(q.scheme);
  const int64_t step = rows_a_part(q.cols);
  const int64_t parts = (q.rows + step - 1) / step;
  std::vector<Status> outcomes(static_cast<size_t>(parts));
  parallel_for(parts, [&](int64_t part) {
    const int64_t first = part * step;
    outcomes[static_cast<size_t>(part)] =
        unpack_rows(packed, code, first, std::min(step, q.rows - first),
                    q.codes.data() + first * q.cols);
  });
  for (Status& outcome : outcomes) NIBBLE_RETURN_IF_ERROR(std::move(outcome));
  return ok_status();
}

Status unpack_rows(const PackedTensor& packed, int64_t first, int64_t rows,
                   uint8_t* codes) {
  return unpack_rows(packed, CodeBytes(packed.scheme), first, rows, codes);
}

Status unpack_levels(const PackedTensor& packed, CodedMatrix& q) {
  NIBBLE_RETURN_IF_ERROR(check_packed(packed));
  q.scheme = packed.scheme;
  q.rows = packed.rows;
  q.cols = packed.cols;
  q.scales.clear();
  q.offsets.clear();
  for (size_t k = 0; k < packed.scales.size(); ++k) {
    NIBBLE_ASSIGN_OR_RETURN(CodedLevel level,
                            unpack_level(q.scheme.scales[k], packed.scales[k], q.rows,
                                         q.cols, level_place(where(packed), "scale", k)));
    q.scales.push_back(std::move(level));
  }
  for (size_t k = 0; k < packed.offsets.size(); ++k) {
    NIBBLE_ASSIGN_OR_RETURN(
        CodedLevel level, unpack_level(q.scheme.offsets[k], packed.offsets[k], q.rows,
                                       q.cols, level_place(where(packed), "offset", k)));
    q.offsets.push_back(std::move(level));
  }
  return ok_status();
}

Status check_packed(const PackedTensor& packed) {
  NIBBLE_RETURN_IF_ERROR(validate_scheme(packed.scheme));
  if (packed.scheme.is_float()) {
    return error(StatusCode::data_loss, where(packed),
                 ": a packed tensor needs a scheme with a scale");
  }
  constexpr int64_t kLargest = int64_t{1}
                               << 31;  // rows * cols * 8 bits stays far from 2^63
  if (packed.rows < 1 || packed.cols < 1 || packed.rows > kLargest ||
      packed.cols > kLargest / 64) {
    return error(StatusCode::data_loss, where(packed),
                 ": rows must be in 1 .. 2^31 and columns in 1 .. 2^25");
  }
  int64_t product = 1;
  for (const int64_t extent : packed.shape) {
    if (extent < 1 || extent > packed.rows * packed.cols / product) {
      product = -1;
      break;
    }
    product *= extent;
  }
  if (product != packed.rows * packed.cols) {
    return error(StatusCode::data_loss, where(packed), ": the shape must have ",
                 packed.rows * packed.cols, " elements; found ",
                 shape_text(packed.shape));
  }
  const int64_t needed = packed.rows * packed_row_bytes(packed.scheme.code, packed.cols);
  if (static_cast<int64_t>(packed.codes.size()) != needed) {
    return error(StatusCode::data_loss, where(packed), ": ", needed,
                 " bytes of codes are needed; found ", packed.codes.size());
  }
  NIBBLE_RETURN_IF_ERROR(
      check_level_sizes(packed, packed.scheme.scales, packed.scales, "scale"));
  return check_level_sizes(packed, packed.scheme.offsets, packed.offsets, "offset");
}

Status dequantize_rows(const PackedTensor& packed, int64_t first, MatrixView<float> x) {
  if (first < 0 || x.rows < 0 || first + x.rows > packed.rows || x.cols != packed.cols) {
    return error(StatusCode::invalid_argument, where(packed), ": rows ", first, " .. ",
                 first + x.rows, " of ", x.cols,
                 " columns are asked for; they must lie inside");
  }
  const CodeBytes code(packed.scheme);
  const LevelReader scales(packed.scheme.scales, packed.scales, packed.rows, packed.cols);
  const LevelReader offsets(packed.scheme.offsets, packed.offsets, packed.rows,
                            packed.cols);
  const int64_t row_bytes = packed_row_bytes(packed.scheme.code, packed.cols);
  const int64_t step = rows_a_part(packed.cols);
  parallel_for((x.rows + step - 1) / step, [&](int64_t part) {
    const size_t cols = static_cast<size_t>(packed.cols);
    std::vector<float> scale(cols), offset(cols);
    std::vector<uint8_t> codes(cols);
    for (int64_t i = part * step; i < std::min(x.rows, (part + 1) * step); ++i) {
      const int64_t r = first + i;
      (void)unpack_row(code, packed.cols, packed.codes.data() + r * row_bytes, codes.data());
      scales.expand(r, scale.data());
      offsets.expand(r, offset.data());
      dequantize_row(packed.scheme, codes.data(), scale.data(), offset.data(), x.row(i),
                     packed.cols);
    }
  });
  return ok_status();
}

}  // namespace nibble
