#include "kernels/ops/conv2d/lanes.h"
#include "kernels/ops/panel/avx512vnni.h"

namespace nibble::avx512vnni {
namespace {

constexpr int kLanes = V::kLanes;

// acc + sum of 4 products in each lane: u one step, the same for all lanes, w signed.
inline V::I dot_signed(V::I acc, V::I u, V::I w) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(w));
  return acc;
}

template <int kVectors, int kPixels>
void tile(const ConvTile& t, int32_t* acc) {
  V::I sums[kPixels][kVectors];
  for (int p = 0; p < kPixels; ++p) {
    for (int v = 0; v < kVectors; ++v) sums[p][v] = V::load_int(t.start + v * kLanes);
  }
  const int32_t* panel = t.panel;
  const uint8_t* from[kPixels];
  for (int p = 0; p < kPixels; ++p) from[p] = t.from[p];
  // One loop, because GCC 12 keeps sums in memory between the runs of an inner one.
  const int64_t skipped = t.row_bytes - 4 * t.run;
  int64_t i = 0, end = 4 * t.run;
  for (int64_t rows = t.rows; rows > 0; panel += kVectors * kLanes) {
    V::I w[kVectors];
    for (int v = 0; v < kVectors; ++v) w[v] = V::load_int(panel + v * kLanes);
    for (int p = 0; p < kPixels; ++p) {
      int32_t step;
      __builtin_memcpy(&step, from[p] + i, sizeof(step));
      const V::I u = V::set1_int(step);
      for (int v = 0; v < kVectors; ++v) sums[p][v] = dot_signed(sums[p][v], u, w[v]);
    }
    i += 4;
    if (i < end) continue;
    i += skipped;
    end += t.row_bytes;
    --rows;
  }
  for (int p = 0; p < kPixels; ++p) {
    for (int v = 0; v < kVectors; ++v)
      V::store_int(acc + (p * kVectors + v) * kLanes, sums[p][v]);
  }
}

template <int kVectors, int kPixels>
void tile_of(const ConvTile& t, int32_t* acc) {
  if constexpr (kPixels > 1) {
    if (t.pixels < kPixels) return tile_of<kVectors, kPixels - 1>(t, acc);
  }
  tile<kVectors, kPixels>(t, acc);
}

void product(const ConvTile& t, int32_t* acc) {
  if (t.vectors == 4) return tile_of<4, 6>(t, acc);
  if (t.vectors == 2) return tile_of<2, 12>(t, acc);
  return tile_of<1, 12>(t, acc);
}

// Rows of 16 bytes to columns: four rounds of pairs.
inline void turn_bytes(__m128i x[16]) {
  __m128i y[16];
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 8; ++i) {
      y[2 * i] = _mm_unpacklo_epi8(x[i], x[i + 8]);
      y[2 * i + 1] = _mm_unpackhi_epi8(x[i], x[i + 8]);
    }
    for (int i = 0; i < 16; ++i) x[i] = y[i];
  }
}

void round_codes(const int32_t* acc, int64_t stride, const ConvRounding& t) {
  const V::F multiplier = V::load(t.multiplier), scale = V::set1(t.scale);
  const V::F low = V::set1(t.low), high = V::set1(t.high);
  __m128i bytes[16];
  for (int p = 0; p < 16; ++p) {
    const V::F x = V::mul(V::to_float(V::load_int(acc + p * stride)), multiplier);
    // NaN is not above the lowest code: the second operand.
    const V::F code = V::min(V::max(V::div(x, scale), low), high);
    bytes[p] = _mm512_cvtepi32_epi8(V::to_int(code));
  }
  turn_bytes(bytes);
  if (t.pixels == 16) {
    for (int o = 0; o < t.outputs; ++o)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(t.out + o * t.stride), bytes[o]);
    return;
  }
  const auto mask = static_cast<__mmask16>((1u << t.pixels) - 1);
  for (int o = 0; o < t.outputs; ++o)
    _mm_mask_storeu_epi8(t.out + o * t.stride, mask, bytes[o]);
}

void turn(const uint8_t* codes, int64_t apart, uint8_t flip, uint8_t* const* out) {
  const __m128i flips = _mm_set1_epi8(static_cast<char>(flip));
  __m128i bytes[16];
  for (int c = 0; c < 16; ++c) {
    bytes[c] = _mm_xor_si128(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + c * apart)), flips);
  }
  turn_bytes(bytes);
  for (int p = 0; p < 16; ++p)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out[p]), bytes[p]);
}

}  // namespace

const ConvLanes conv_lanes = {kLanes, product, round_codes, turn};

}  // namespace nibble::avx512vnni
