#include "kernels/ops/linear/linear_bf16.h"
#include "kernels/ops/panel/avx512vnni.h"
#include "kernels/ops/panel/unroll.h"

namespace nibble::avx512bf16 {
namespace {

using F = __m512;
using I = __m512i;
using V = avx512vnni::V;  // inlined; what it uses this file's flags have

constexpr int64_t kUnit = 64;
constexpr int64_t kAhead = 3072;  // as linear_vector.inc
constexpr int kTile = V::kTile, kSmallTile = V::kSmallTile;

// acc + sum of the 2 products in each lane. Assembler, because GCC 12 copies and spills
// the intrinsic's accumulators.
inline F dot(F acc, I w, I x) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
  return acc;
}
inline I pair_of(const uint32_t* x) { return V::set1_int(static_cast<int32_t>(*x)); }

void pair_row(const float* x, int64_t n, uint32_t* out) {
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 32; ++i) {
    order[i] = static_cast<uint16_t>(i / 8 * 8 + kBf16Order[i % 8]);
  }
  const I index = _mm512_load_si512(order);
  for (int64_t i = 0; i < n; i += 32) {
    const int64_t left = n - i;
    const F low = left >= 16 ? V::load(x + i) : V::load_first(x + i, left);
    const F high = left >= 32   ? V::load(x + i + 16)
                   : left >= 16 ? V::load_first(x + i + 16, left - 16)
                                : V::zero();
    I both;
    asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(high), "v"(low));
    const __mmask16 kept =
        left >= 32 ? static_cast<__mmask16>(0xffff) : V::mask((left + 7) / 8 * 4);
    _mm512_mask_storeu_epi32(out + i / 2, kept, _mm512_permutexvar_epi16(index, both));
  }
}

// The pairs of 8 columns of panels p and p + 1, from their codes: pair(half, j) is the
// j-th of 4. `at` is where the 8 columns start.
struct PlainStep {
  static constexpr int64_t kBytes = 8 * kUnit;  // that 8 columns of both panels take
  const uint8_t* at;
  explicit PlainStep(const PanelCodes&) {}
  void load(const uint8_t* p) { at = p; }
  I pair(int half, int j) const { return V::load_int(at + (2 * j + half) * kUnit); }
};
struct Table4Step {
  static constexpr int64_t kBytes = 2 * kUnit;
  I table, word[2];
  explicit Table4Step(const PanelCodes& w) : table(V::load_int(w.values)) {}
  void load(const uint8_t* p) {
    word[0] = V::load_int(p);
    word[1] = V::load_int(p + kUnit);
  }
  // A lookup reads 5 bits: the table holds the 16 values twice, so that the fifth may be
  // anything.
  I pair(int half, int j) const {
    return _mm512_permutexvar_epi16(j == 0 ? word[half] : V::right(word[half], 4 * j),
                                    table);
  }
};
struct Table8Step {
  static constexpr int64_t kBytes = 4 * kUnit;
  I low[4], high[4];  // bytes of the values of codes 64 i .. 64 i + 63
  I pairs[2][4];
  explicit Table8Step(const PanelCodes& w) {
    for (int i = 0; i < 4; ++i) {
      low[i] = V::load_int(w.values + i * kUnit);
      high[i] = V::load_int(w.values + (4 + i) * kUnit);
    }
  }
  void load(const uint8_t* p) {
    NIBBLE_UNROLL
    for (int unit = 0; unit < 4; ++unit) {  // [2 x 4 columns][2 panels]
      const I codes = V::load_int(p + unit * kUnit);
      const __mmask64 upper = _mm512_movepi8_mask(codes);
      // 7 bits of a code choose among 128 bytes; the eighth, which half of the table.
      const I a =
          _mm512_mask_mov_epi8(_mm512_permutex2var_epi8(low[0], codes, low[1]), upper,
                               _mm512_permutex2var_epi8(low[2], codes, low[3]));
      const I b =
          _mm512_mask_mov_epi8(_mm512_permutex2var_epi8(high[0], codes, high[1]), upper,
                               _mm512_permutex2var_epi8(high[2], codes, high[3]));
      pairs[unit % 2][unit / 2 * 2] = _mm512_unpacklo_epi8(a, b);
      pairs[unit % 2][unit / 2 * 2 + 1] = _mm512_unpackhi_epi8(a, b);
    }
  }
  I pair(int half, int j) const { return pairs[half][j]; }
};

template <class Step>
inline const uint8_t* codes_at(const PanelCodes& w, int64_t p, int64_t column) {
  return w.codes + p * w.panel_bytes + column / 8 * Step::kBytes;
}
inline int64_t level_of(const PanelCodes& w, int64_t p, int64_t g) {
  return (p / 2 * w.groups + g) * 2 * V::kLanes;
}

template <class Step, int M>
void direct_of(const PanelCodes& w, int64_t p, const uint32_t* x, const float* sums,
               float* acc) {
  // A product waits for the one before it in its sum: few tokens take several sums.
  constexpr int kChains = M <= 2 ? 4 : M <= 4 ? 2 : 1;
  const int64_t padded_group = padded_group_of(w), pairs = w.padded_cols / 2;
  Step step(w);
  const uint8_t* codes = codes_at<Step>(w, p, 0);
  F total[M][2];
  NIBBLE_UNROLL
  for (int m = 0; m < M; ++m) total[m][0] = total[m][1] = V::zero();
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t left = w.padded_cols - g * padded_group;
    const int64_t steps = (left < padded_group ? left : padded_group) / 8;
    F sum[M][2][kChains];
    NIBBLE_UNROLL
    for (int m = 0; m < M; ++m) {
      NIBBLE_UNROLL
      for (int c = 0; c < kChains; ++c) sum[m][0][c] = sum[m][1][c] = V::zero();
    }
    for (int64_t i = 0; i < steps; ++i) {
      step.load(codes);
      NIBBLE_UNROLL
      for (int64_t b = 0; b < Step::kBytes; b += kUnit) V::prefetch(codes + kAhead + b);
      codes += Step::kBytes;
      NIBBLE_UNROLL
      for (int j = 0; j < 4; ++j) {
        const I a = step.pair(0, j), b = step.pair(1, j);
        NIBBLE_UNROLL
        for (int m = 0; m < M; ++m) {
          const I value = pair_of(x + m * pairs + j);
          sum[m][0][j % kChains] = dot(sum[m][0][j % kChains], a, value);
          sum[m][1][j % kChains] = dot(sum[m][1][j % kChains], b, value);
        }
      }
      x += 4;
    }
    const int64_t level = level_of(w, p, g);
    NIBBLE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const F scale = load_levels<V>(w.scales, level + half * V::kLanes);
      NIBBLE_UNROLL
      for (int m = 0; m < M; ++m) {
        const F* s = sum[m][half];
        F v = s[0];
        if (kChains == 2) v = V::add(v, s[kChains - 1]);
        if (kChains == 4)
          v = V::add(V::add(v, s[1 % kChains]), V::add(s[2 % kChains], s[3 % kChains]));
        total[m][half] = V::fma(v, scale, total[m][half]);
        if (w.minima.exist()) {
          total[m][half] = V::fma(load_levels<V>(w.minima, level + half * V::kLanes),
                                  V::set1(sums[m * w.groups + g]), total[m][half]);
        }
      }
    }
  }
  NIBBLE_UNROLL
  for (int m = 0; m < M; ++m) {
    V::store(acc + (2 * m) * V::kLanes, total[m][0]);
    V::store(acc + (2 * m + 1) * V::kLanes, total[m][1]);
  }
}

template <class Step>
void direct(const PanelCodes& w, int64_t p, int tokens, const uint32_t* x,
            const float* sums, float* acc) {
  switch (tokens) {
    case 1:
      return direct_of<Step, 1>(w, p, x, sums, acc);
    case 2:
      return direct_of<Step, 2>(w, p, x, sums, acc);
    case 3:
      return direct_of<Step, 3>(w, p, x, sums, acc);
    case 4:
      return direct_of<Step, 4>(w, p, x, sums, acc);
    case 5:
      return direct_of<Step, 5>(w, p, x, sums, acc);
    case 6:
      return direct_of<Step, 6>(w, p, x, sums, acc);
    case 7:
      return direct_of<Step, 7>(w, p, x, sums, acc);
    default:
      return direct_of<Step, 8>(w, p, x, sums, acc);
  }
}

template <class Step>
void decode(const PanelCodes& w, int64_t p, int64_t first, int64_t end, uint32_t* out) {
  Step step(w);
  const uint8_t* codes = codes_at<Step>(w, p, first);
  for (int64_t c = first; c < end; c += 8) {
    step.load(codes);
    codes += Step::kBytes;
    NIBBLE_UNROLL
    for (int j = 0; j < 4; ++j) {
      V::store_int(out, step.pair(0, j));
      V::store_int(out + V::kLanes, step.pair(1, j));
      out += 2 * V::kLanes;
    }
  }
}

template <int MR, bool kMinima>
void tile_of(const PanelCodes& w, int64_t p, int64_t first, int64_t end,
             const uint32_t* x, const float* sums, const uint32_t* u, float* acc) {
  const int64_t padded_group = padded_group_of(w);
  int64_t g = first / padded_group;
  int64_t stop = (g + 1) * padded_group;
  int64_t level = level_of(w, p, g);
  bool begins = first == g * padded_group;  // at the start of its group
  if (kMinima) sums += g * MR;
  if (first == 0) {
    NIBBLE_UNROLL
    for (int m = 0; m < 2 * MR; ++m) V::store(acc + m * V::kLanes, V::zero());
  }
  for (int64_t c = first; c < end; begins = true) {
    const int64_t last = stop < end ? stop : end;
    F sum[MR][2];
    NIBBLE_UNROLL
    for (int m = 0; m < MR; ++m) sum[m][0] = sum[m][1] = V::zero();
    for (; c < last; c += 2) {
      const I a = V::load_int(u), b = V::load_int(u + V::kLanes);
      NIBBLE_UNROLL
      for (int m = 0; m < MR; ++m) {
        const I value = pair_of(x + m);
        sum[m][0] = dot(sum[m][0], a, value);
        sum[m][1] = dot(sum[m][1], b, value);
      }
      x += MR;
      u += 2 * V::kLanes;
    }
    const F s0 = load_levels<V>(w.scales, level);
    const F s1 = load_levels<V>(w.scales, level + V::kLanes);
    const F m0 = kMinima ? load_levels<V>(w.minima, level) : V::zero();
    const F m1 = kMinima ? load_levels<V>(w.minima, level + V::kLanes) : V::zero();
    NIBBLE_UNROLL
    for (int m = 0; m < MR; ++m) {
      float* to = acc + 2 * m * V::kLanes;
      F t0 = V::fma(sum[m][0], s0, V::load(to));
      F t1 = V::fma(sum[m][1], s1, V::load(to + V::kLanes));
      if (kMinima && begins) {  // once a group
        const F s = V::set1(sums[m]);
        t0 = V::fma(m0, s, t0);
        t1 = V::fma(m1, s, t1);
      }
      V::store(to, t0);
      V::store(to + V::kLanes, t1);
    }
    // Without this GCC 12 carries the totals from group to group in registers that there
    // are not, and so stores each twice.
    asm volatile("" ::: "memory");
    stop += padded_group;
    level += 2 * V::kLanes;
    if (kMinima) sums += MR;
  }
}

template <int MR>
void tile(const PanelCodes& w, int64_t p, int64_t first, int64_t end, const uint32_t* x,
          const float* sums, const uint32_t* u, float* acc) {
  if (w.minima.exist()) return tile_of<MR, true>(w, p, first, end, x, sums, u, acc);
  tile_of<MR, false>(w, p, first, end, x, sums, u, acc);
}

}  // namespace

const LinearBf16Isa linear_bf16_isa = {
    .direct_tokens = 8,
    .pair_row = pair_row,
    .direct = {direct<PlainStep>, direct<Table4Step>, direct<Table8Step>},
    .decode = {decode<PlainStep>, decode<Table4Step>, decode<Table8Step>},
    .tile = tile<kTile>,
    .small_tile = tile<kSmallTile>,
};

}  // namespace nibble::avx512bf16
