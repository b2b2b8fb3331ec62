#include "export/ggml/unpack.h"

#include <cmath>
#include <cstring>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"

namespace nibble {
namespace {

// Where one block's codes and scales go.
struct Target {
  uint8_t* codes;
  float* inner;
  float* minima;         // null where the type has none
  float* outer;          // null where the type has one level
  float* outer_minimum;  // likewise
};

using Bytes8 = const uint8_t*;

float half_at(Bytes8 at) {
  return float_from_f16(static_cast<uint16_t>(at[0] | at[1] << 8));
}
uint8_t minus(int value, int bias) { return static_cast<uint8_t>(value - bias); }

// The four bits of value j, n values in n / 2 bytes.
int nibble_at(Bytes8 qs, int n, int j) {
  return j < n / 2 ? qs[j] & 15 : qs[j - n / 2] >> 4;
}
// The two bits of value j of 256.
int crumb_at(Bytes8 qs, int j) {
  return qs[j / 128 * 32 + j % 32] >> (j % 128 / 32 * 2) & 3;
}
int bit_at(Bytes8 bits, int j) { return bits[j / 8] >> (j % 8) & 1; }

void read_q4_0(Bytes8 in, Target to) {
  to.inner[0] = half_at(in);
  for (int j = 0; j < 32; ++j) to.codes[j] = minus(nibble_at(in + 2, 32, j), 8);
}
void read_q4_1(Bytes8 in, Target to) {
  to.inner[0] = half_at(in);
  to.minima[0] = half_at(in + 2);
  for (int j = 0; j < 32; ++j) to.codes[j] = minus(nibble_at(in + 4, 32, j), 0);
}
void read_q5_0(Bytes8 in, Target to) {
  to.inner[0] = half_at(in);
  for (int j = 0; j < 32; ++j)
    to.codes[j] = minus(nibble_at(in + 6, 32, j) | bit_at(in + 2, j) << 4, 16);
}
void read_q5_1(Bytes8 in, Target to) {
  to.inner[0] = half_at(in);
  to.minima[0] = half_at(in + 2);
  for (int j = 0; j < 32; ++j)
    to.codes[j] = minus(nibble_at(in + 8, 32, j) | bit_at(in + 4, j) << 4, 0);
}
void read_q8_0(Bytes8 in, Target to) {
  to.inner[0] = half_at(in);
  std::memcpy(to.codes, in + 2, 32);
}

void read_q2_k(Bytes8 in, Target to) {
  for (int g = 0; g < 16; ++g) {
    to.inner[g] = static_cast<float>(in[g] & 15);
    to.minima[g] = static_cast<float>(in[g] >> 4);
  }
  for (int j = 0; j < 256; ++j) to.codes[j] = minus(crumb_at(in + 16, j), 0);
  *to.outer = half_at(in + 80);
  *to.outer_minimum = -half_at(in + 82);
}

void read_q3_k(Bytes8 in, Target to) {
  const Bytes8 high = in, scales = in + 96;
  for (int j = 0; j < 256; ++j) {
    const int bit = high[j % 32] >> (j / 32) & 1;
    to.codes[j] = minus(crumb_at(in + 32, j) + 4 * bit, 4);
  }
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? scales[g] & 15 : scales[g - 8] >> 4;
    const int upper = scales[8 + g % 4] >> (2 * (g / 4)) & 3;
    to.inner[g] = static_cast<float>((low | upper << 4) - 32);
  }
  *to.outer = half_at(in + 108);
}

void read_six_bits(Bytes8 s, Target to) {
  for (int j = 0; j < 8; ++j) {
    const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    const int minimum = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4;
    to.inner[j] = static_cast<float>(scale);
    to.minima[j] = static_cast<float>(minimum);
  }
}
void read_q4_k(Bytes8 in, Target to) {
  *to.outer = half_at(in);
  *to.outer_minimum = -half_at(in + 2);
  read_six_bits(in + 4, to);
  for (int j = 0; j < 256; ++j)
    to.codes[j] = minus(nibble_at(in + 16 + j / 64 * 32, 64, j % 64), 0);
}
void read_q5_k(Bytes8 in, Target to) {
  *to.outer = half_at(in);
  *to.outer_minimum = -half_at(in + 2);
  read_six_bits(in + 4, to);
  for (int j = 0; j < 256; ++j) {
    const int fifth = in[16 + j % 32] >> (j / 32) & 1;
    to.codes[j] = minus(nibble_at(in + 48 + j / 64 * 32, 64, j % 64) | fifth << 4, 0);
  }
}
void read_q6_k(Bytes8 in, Target to) {
  for (int j = 0; j < 256; ++j) {
    const int half = j / 128, quarter = j % 128 / 32, l = j % 32;
    const Bytes8 low = in + 64 * half + 32 * (quarter % 2);
    const int four = quarter < 2 ? low[l] & 15 : low[l] >> 4;
    const int two = in[128 + 32 * half + l] >> (2 * quarter) & 3;
    to.codes[j] = minus(four | two << 4, 32);
  }
  for (int g = 0; g < 16; ++g)
    to.inner[g] = static_cast<float>(static_cast<int8_t>(in[192 + g]));
  *to.outer = half_at(in + 208);
}

void read_iq4_nl(Bytes8 in, Target to) {
  to.inner[0] = half_at(in);
  for (int j = 0; j < 32; ++j) to.codes[j] = minus(nibble_at(in + 2, 32, j), 0);
}
void read_iq4_xs(Bytes8 in, Target to) {
  *to.outer = half_at(in);
  const int high = in[2] | in[3] << 8;
  for (int g = 0; g < 8; ++g) {
    const int low = in[4 + g / 2] >> (4 * (g % 2)) & 15;
    to.inner[g] = static_cast<float>((low | (high >> (2 * g) & 3) << 4) - 32);
  }
  for (int j = 0; j < 256; ++j)
    to.codes[j] = minus(nibble_at(in + 8 + j / 32 * 16, 32, j % 32), 0);
}

// Digit n of a byte's fraction in base 3.
uint8_t trit(uint8_t byte, int n) {
  constexpr int kPowers[] = {1, 3, 9, 27, 81};
  return static_cast<uint8_t>((byte * kPowers[n] & 255) * 3 >> 8);
}
void read_tq1_0(Bytes8 in, Target to) {
  for (int j = 0; j < 256; ++j) {
    if (j < 160) {
      to.codes[j] = trit(in[j % 32], j / 32);
    } else if (j < 240) {
      to.codes[j] = trit(in[32 + (j - 160) % 16], (j - 160) / 16);
    } else {
      to.codes[j] = trit(in[48 + (j - 240) % 4], (j - 240) / 4);
    }
  }
  to.inner[0] = half_at(in + 52);
}
void read_tq2_0(Bytes8 in, Target to) {
  for (int j = 0; j < 256; ++j) to.codes[j] = minus(crumb_at(in, j), 0);
  to.inner[0] = half_at(in + 64);
}
void read_mxfp4(Bytes8 in, Target to) {
  to.inner[0] = float_from_e8m0(in[0]);
  for (int j = 0; j < 32; ++j) to.codes[j] = minus(nibble_at(in + 1, 32, j), 0);
}

struct BlockReader {
  const char* type;
  void (*read)(Bytes8 in, Target to);
};
constexpr BlockReader kReaders[] = {
    {"Q4_0", read_q4_0},   {"Q4_1", read_q4_1},     {"Q5_0", read_q5_0},
    {"Q5_1", read_q5_1},   {"Q8_0", read_q8_0},     {"Q2_K", read_q2_k},
    {"Q3_K", read_q3_k},   {"Q4_K", read_q4_k},     {"Q5_K", read_q5_k},
    {"Q6_K", read_q6_k},   {"IQ4_NL", read_iq4_nl}, {"IQ4_XS", read_iq4_xs},
    {"TQ1_0", read_tq1_0}, {"TQ2_0", read_tq2_0},   {"MXFP4", read_mxfp4},
};

void make_levels(const std::vector<ScaleLevel>& levels, const CodedMatrix& q,
                 std::vector<CodedLevel>& out) {
  for (const ScaleLevel& level : levels) {
    const LevelShape shape = level_shape(level.block, q.rows, q.cols);
    out.push_back({shape.rows, shape.cols,
                   std::vector<float>(static_cast<size_t>(shape.rows * shape.cols)), 0});
  }
}

// Ternary has three codes in two bits, f16 has infinities and e8m0 a NaN.
Status check_meaning(const GgmlType& type, const CodedMatrix& q) {
  const auto check = [&](const std::vector<CodedLevel>& levels, const char* what) {
    for (const CodedLevel& level : levels) {
      for (size_t i = 0; i < level.values.size(); ++i) {
        if (std::isfinite(level.values[i])) continue;
        const int64_t at = static_cast<int64_t>(i);
        return error(StatusCode::data_loss, "[ggml] ", type.name, ": row ",
                     at / level.cols, ", column ",
                     at % level.cols * (q.cols / level.cols), ": a finite ", what,
                     " was required; found ", level.values[i], "; the file is damaged");
      }
    }
    return ok_status();
  };
  NIBBLE_RETURN_IF_ERROR(check(q.scales, "scale"));
  NIBBLE_RETURN_IF_ERROR(check(q.offsets, "minimum"));
  if (q.scheme.code != Element::ternary) return ok_status();
  for (size_t i = 0; i < q.codes.size(); ++i) {
    if (q.codes[i] < 3) continue;
    const int64_t at = static_cast<int64_t>(i);
    return error(StatusCode::data_loss, "[ggml] ", type.name, ": row ", at / q.cols,
                 ", column ", at % q.cols,
                 ": a code of 0, 1 or 2 was required; found 3; the file is damaged");
  }
  return ok_status();
}

}  // namespace

Result<CodedMatrix> unpack_ggml(const GgmlType& type, int64_t rows, int64_t cols,
                                std::span<const std::byte> bytes) {
  const BlockReader* reader = nullptr;
  for (const BlockReader& row : kReaders) {
    if (std::string_view(row.type) == type.name) reader = &row;
  }
  if (reader == nullptr || cols % type.block != 0 ||
      static_cast<int64_t>(bytes.size()) != rows * type.row_bytes(cols)) {
    return error(StatusCode::data_loss, "[ggml] ", type.name, ": [", rows, ", ", cols,
                 "] in whole blocks of ", type.block, " values and ", type.bytes,
                 " bytes was required; found ", bytes.size(), " bytes");
  }
  CodedMatrix q;
  q.scheme = type.scheme;
  q.rows = rows;
  q.cols = cols;
  q.codes.resize(static_cast<size_t>(rows * cols));
  make_levels(q.scheme.scales, q, q.scales);
  make_levels(q.scheme.offsets, q, q.offsets);
  const int64_t blocks = cols / type.block;
  const int64_t inner = type.block / q.scheme.scales[0].block.cols;
  const auto level = [](std::vector<CodedLevel>& levels, size_t k, int64_t at) {
    return levels.size() > k ? levels[k].values.data() + at : nullptr;
  };
  parallel_for(rows, [&](int64_t r) {
    for (int64_t i = r * blocks; i < (r + 1) * blocks; ++i) {
      const Target to = {q.codes.data() + i * type.block, level(q.scales, 0, i * inner),
                         level(q.offsets, 0, i * inner), level(q.scales, 1, i),
                         level(q.offsets, 1, i)};
      reader->read(reinterpret_cast<const uint8_t*>(bytes.data()) + i * type.bytes, to);
    }
  });
  NIBBLE_RETURN_IF_ERROR(check_meaning(type, q));
  return q;
}

}  // namespace nibble
