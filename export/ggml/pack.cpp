#include "export/ggml/pack.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"
#include "kernels/scheme/element_codec.h"

namespace nibble {
namespace {

// One block's codes and the values of its levels. Integer levels come as integers.
struct BlockParts {
  const uint8_t* codes;
  const float* inner;         // scales of the innermost level
  const float* inner_minima;  // of the minimum, or null
  float outer = 0;            // of two levels
  float outer_minimum = 0;
};

void put_half(std::byte* at, float value) {
  const uint16_t bits = f16_from_float(value);
  std::memcpy(at, &bits, sizeof bits);
}

std::byte byte_of(int value) { return static_cast<std::byte>(value & 0xff); }
int whole(float value) { return static_cast<int>(value); }

// Value j in the low half of byte j, value j + n / 2 in the high half.
template <class Nibble>
void put_halves(int n, Nibble nibble, std::byte* out) {
  for (int j = 0; j < n / 2; ++j) out[j] = byte_of(nibble(j) | nibble(j + n / 2) << 4);
}

// Two bits a value: of every 128, four runs of 32 side by side in the bits of 32 bytes.
template <class Crumb>
void put_crumbs(Crumb crumb, std::byte* out) {
  for (int half = 0; half < 2; ++half) {
    for (int l = 0; l < 32; ++l) {
      int byte = 0;
      for (int p = 0; p < 4; ++p) byte |= crumb(128 * half + 32 * p + l) << (2 * p);
      out[32 * half + l] = byte_of(byte);
    }
  }
}

void pack_q4_0(const BlockParts& b, std::byte* out) {
  put_half(out, b.inner[0]);
  put_halves(
      32, [&](int j) { return (b.codes[j] + 8) & 15; }, out + 2);
}

void pack_q4_1(const BlockParts& b, std::byte* out) {
  put_half(out, b.inner[0]);
  put_half(out + 2, b.inner_minima[0]);
  put_halves(
      32, [&](int j) { return b.codes[j]; }, out + 4);
}

void put_fifth_bits(const int* values, std::byte* out) {
  uint32_t bits = 0;
  for (int j = 0; j < 32; ++j) bits |= static_cast<uint32_t>(values[j] >> 4 & 1) << j;
  std::memcpy(out, &bits, sizeof bits);
}

void pack_q5(const BlockParts& b, int bias, std::byte* out) {
  int values[32];
  for (int j = 0; j < 32; ++j) values[j] = (b.codes[j] + bias) & 31;
  put_fifth_bits(values, out);
  put_halves(
      32, [&](int j) { return values[j] & 15; }, out + 4);
}
void pack_q5_0(const BlockParts& b, std::byte* out) {
  put_half(out, b.inner[0]);
  pack_q5(b, 16, out + 2);
}
void pack_q5_1(const BlockParts& b, std::byte* out) {
  put_half(out, b.inner[0]);
  put_half(out + 2, b.inner_minima[0]);
  pack_q5(b, 0, out + 4);
}

void pack_q8_0(const BlockParts& b, std::byte* out) {
  put_half(out, b.inner[0]);
  std::memcpy(out + 2, b.codes, 32);
}

void pack_q2_k(const BlockParts& b, std::byte* out) {
  for (int g = 0; g < 16; ++g)
    out[g] = byte_of(whole(b.inner[g]) | whole(b.inner_minima[g]) << 4);
  put_crumbs([&](int j) { return b.codes[j]; }, out + 16);
  put_half(out + 80, b.outer);
  put_half(out + 82, -b.outer_minimum);
}

void pack_q3_k(const BlockParts& b, std::byte* out) {
  std::memset(out, 0, 32);
  for (int j = 0; j < 256; ++j) {  // int3 -4 .. 3 is stored + 4, its high bit apart
    const int value = (b.codes[j] + 4) & 7;
    out[j % 32] |= byte_of((value >> 2) << (j / 32));
  }
  put_crumbs([&](int j) { return b.codes[j] & 3; }, out + 32);
  std::byte* scales = out + 96;
  std::memset(scales, 0, 12);
  for (int g = 0; g < 16; ++g) {
    const int value = whole(b.inner[g]) + 32;
    scales[g % 8] |= byte_of((value & 15) << (g < 8 ? 0 : 4));
    scales[8 + g % 4] |= byte_of((value >> 4) << (2 * (g / 4)));
  }
  put_half(out + 108, b.outer);
}

// The 6-bit scales and minima of Q4_K and Q5_K.
void put_six_bits(const BlockParts& b, std::byte* out) {
  std::memset(out, 0, 12);
  for (int j = 0; j < 8; ++j) {
    const int scale = whole(b.inner[j]), minimum = whole(b.inner_minima[j]);
    if (j < 4) {
      out[j] |= byte_of(scale);
      out[j + 4] |= byte_of(minimum);
    } else {
      out[j + 4] |= byte_of((scale & 15) | (minimum & 15) << 4);
      out[j - 4] |= byte_of((scale >> 4) << 6);
      out[j] |= byte_of((minimum >> 4) << 6);
    }
  }
}

// Of every 64 values the first 32 lie in the low halves of 32 bytes.
void put_chunks(const uint8_t* codes, std::byte* out) {
  for (int chunk = 0; chunk < 4; ++chunk) {
    put_halves(
        64, [&](int j) { return codes[64 * chunk + j] & 15; }, out + 32 * chunk);
  }
}

void pack_q4_k(const BlockParts& b, std::byte* out) {
  put_half(out, b.outer);
  put_half(out + 2, -b.outer_minimum);
  put_six_bits(b, out + 4);
  put_chunks(b.codes, out + 16);
}

void pack_q5_k(const BlockParts& b, std::byte* out) {
  put_half(out, b.outer);
  put_half(out + 2, -b.outer_minimum);
  put_six_bits(b, out + 4);
  std::memset(out + 16, 0, 32);
  for (int j = 0; j < 256; ++j)
    out[16 + j % 32] |= byte_of((b.codes[j] >> 4) << (j / 32));
  put_chunks(b.codes, out + 48);
}

void pack_q6_k(const BlockParts& b, std::byte* out) {
  for (int half = 0; half < 2; ++half) {
    int v[128];
    for (int j = 0; j < 128; ++j) v[j] = (b.codes[128 * half + j] + 32) & 63;
    std::byte* low = out + 64 * half;
    std::byte* high = out + 128 + 32 * half;
    for (int l = 0; l < 32; ++l) {
      low[l] = byte_of((v[l] & 15) | (v[l + 64] & 15) << 4);
      low[l + 32] = byte_of((v[l + 32] & 15) | (v[l + 96] & 15) << 4);
      high[l] = byte_of(v[l] >> 4 | (v[l + 32] >> 4) << 2 | (v[l + 64] >> 4) << 4 |
                        (v[l + 96] >> 4) << 6);
    }
  }
  for (int g = 0; g < 16; ++g) out[192 + g] = byte_of(whole(b.inner[g]));
  put_half(out + 208, b.outer);
}

void pack_iq4_nl(const BlockParts& b, std::byte* out) {
  put_half(out, b.inner[0]);
  put_halves(
      32, [&](int j) { return b.codes[j]; }, out + 2);
}

void pack_iq4_xs(const BlockParts& b, std::byte* out) {
  put_half(out, b.outer);
  uint16_t high = 0;
  std::memset(out + 4, 0, 4);
  for (int g = 0; g < 8; ++g) {
    const int value = whole(b.inner[g]) + 32;
    high = static_cast<uint16_t>(high | (value >> 4) << (2 * g));
    out[4 + g / 2] |= byte_of((value & 15) << (4 * (g % 2)));
    put_halves(
        32, [&](int j) { return b.codes[32 * g + j]; }, out + 8 + 16 * g);
  }
  std::memcpy(out + 2, &high, sizeof high);
}

// Base-3 digits, the first value's the most significant; a byte is the fraction v / 3^5
// rounded up, from which multiplying by 3 brings out digit after digit.
std::byte trits(const uint8_t* codes, int stride, int count) {
  int v = 0;
  for (int n = 0; n < 5; ++n) v = 3 * v + (n < count ? codes[n * stride] : 0);
  return byte_of((v * 256 + 242) / 243);
}

void pack_tq1_0(const BlockParts& b, std::byte* out) {
  for (int l = 0; l < 32; ++l) out[l] = trits(b.codes + l, 32, 5);
  for (int l = 0; l < 16; ++l) out[32 + l] = trits(b.codes + 160 + l, 16, 5);
  for (int l = 0; l < 4; ++l) out[48 + l] = trits(b.codes + 240 + l, 4, 4);
  put_half(out + 52, b.inner[0]);
}

void pack_tq2_0(const BlockParts& b, std::byte* out) {
  put_crumbs([&](int j) { return b.codes[j]; }, out);
  put_half(out + 64, b.inner[0]);
}

void pack_mxfp4(const BlockParts& b, std::byte* out) {
  out[0] = static_cast<std::byte>(bits_of_value(Element::e8m0, b.inner[0]));
  put_halves(
      32, [&](int j) { return b.codes[j]; }, out + 1);
}

struct Packer {
  const char* type;
  void (*pack)(const BlockParts& block, std::byte* out);
};
constexpr Packer kPackers[] = {
    {"Q4_0", pack_q4_0},   {"Q4_1", pack_q4_1},     {"Q5_0", pack_q5_0},
    {"Q5_1", pack_q5_1},   {"Q8_0", pack_q8_0},     {"Q2_K", pack_q2_k},
    {"Q3_K", pack_q3_k},   {"Q4_K", pack_q4_k},     {"Q5_K", pack_q5_k},
    {"Q6_K", pack_q6_k},   {"IQ4_NL", pack_iq4_nl}, {"IQ4_XS", pack_iq4_xs},
    {"TQ1_0", pack_tq1_0}, {"TQ2_0", pack_tq2_0},   {"MXFP4", pack_mxfp4},
};

// Every value of a level must be one of its element's: a scale that was not rounded would
// become another.
Status check_values(const GgmlType& type, const char* what, size_t k,
                    const ScaleLevel& level, const CodedLevel& values) {
  for (size_t i = 0; i < values.values.size(); ++i) {
    const float v = values.values[i];
    if (value_of_bits(level.element, bits_of_value(level.element, v)) == v) continue;
    return error(StatusCode::invalid_argument, "[ggml] ", type.name, ": ", what,
                 " level ", k, ": value ", i, " must be exactly ",
                 element_info(level.element).text, "; found ", v);
  }
  return ok_status();
}

Status check_levels(const GgmlType& type, const char* what,
                    const std::vector<ScaleLevel>& levels,
                    const std::vector<CodedLevel>& values, const CodedMatrix& q) {
  if (values.size() != levels.size()) {
    return error(StatusCode::invalid_argument, "[ggml] ", type.name, ": needs ",
                 levels.size(), " ", what, " levels; found ", values.size());
  }
  for (size_t k = 0; k < levels.size(); ++k) {
    const LevelShape shape = level_shape(levels[k].block, q.rows, q.cols);
    if (static_cast<int64_t>(values[k].values.size()) != shape.rows * shape.cols) {
      return error(StatusCode::invalid_argument, "[ggml] ", type.name, ": ", what,
                   " level ", k, " needs ", shape.rows * shape.cols, " values; found ",
                   values[k].values.size());
    }
    NIBBLE_RETURN_IF_ERROR(check_values(type, what, k, levels[k], values[k]));
  }
  return ok_status();
}

}  // namespace

Status pack_ggml(const GgmlType& type, const CodedMatrix& q, std::byte* out) {
  const auto packer = std::find_if(
      std::begin(kPackers), std::end(kPackers),
      [&](const Packer& row) { return std::string_view(row.type) == type.name; });
  if (packer == std::end(kPackers) || !(q.scheme == type.scheme)) {
    return error(StatusCode::invalid_argument, "[ggml] ", type.name, ": holds ",
                 to_string(type.scheme), "; found ", to_string(q.scheme));
  }
  if (q.cols % type.block != 0 ||
      static_cast<int64_t>(q.codes.size()) != q.rows * q.cols) {
    return error(StatusCode::invalid_argument, "[ggml] ", type.name,
                 ": needs whole blocks of ", type.block,
                 " columns and a code each; found [", q.rows, ", ", q.cols, "] with ",
                 q.codes.size(), " codes");
  }
  NIBBLE_RETURN_IF_ERROR(check_levels(type, "scale", q.scheme.scales, q.scales, q));
  NIBBLE_RETURN_IF_ERROR(check_levels(type, "minimum", q.scheme.offsets, q.offsets, q));
  const int64_t blocks = q.cols / type.block;
  const int64_t inner = type.block / q.scheme.scales[0].block.cols;  // scales a block
  const bool two = q.scheme.scales.size() == 2;
  parallel_for(q.rows, [&](int64_t r) {
    for (int64_t i = r * blocks; i < (r + 1) * blocks; ++i) {
      BlockParts block;
      block.codes = q.codes.data() + i * type.block;
      block.inner = q.scales[0].values.data() + i * inner;
      block.inner_minima =
          q.offsets.empty() ? nullptr : q.offsets[0].values.data() + i * inner;
      const size_t at = static_cast<size_t>(i);
      if (two) block.outer = q.scales[1].values[at];
      if (q.offsets.size() == 2) block.outer_minimum = q.offsets[1].values[at];
      packer->pack(block, out + i * type.bytes);
    }
  });
  return ok_status();
}

}  // namespace nibble
