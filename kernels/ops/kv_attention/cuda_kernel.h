// The CUDA kernel of decode attention (cuda_kv_attention.h).
//
// A block has 16 heads of one kv head (fewer: the rest are zeros) and a run of positions,
// of which each of 4 warps takes 16 at a time. Both products have the heads as the mma's
// rows:
//
//   scores   a = q [16 heads, 16 dims]     b = k' [16 dims, 8 positions]
//   values   a = p [16 heads, 16 positions] b = v [16 positions, 8 dims]
//
// so that the scores' d is the weights' a, lane by lane. A lane reads 16 bytes of a row
// together: the sum over dims has no order, so dims 16 t .. 16 t + 15 of each 64 (int8;
// 8 of 32 in f16) are steps 0 .. 3 of lane 4 g + t; and column g of the j-th value tile
// is dim 16 g + j of each 128 (int8), which turns the four rows that a lane reads into b
// by byte permutations alone.
#pragma once

#include "kernels/ops/kv_attention/cuda_kv_attention.h"

namespace nibble::cuda {

struct KvAttentionParams {
  const uint16_t* q;
  const uint8_t *k, *v;
  const uint16_t *k_scales, *v_scales;
  const int32_t* lengths;
  void* y;
  Output output;
  float* partial;  // [batch][heads][splits][head_dim + 2]
  uint32_t* counters;
  int64_t capacity;  // positions from one row's cache to the next's
  int64_t q_stride;
  int heads, kv_heads, window, splits;
  float scale;  // times log2(e)
};

template <KvForm kForm, Float16 kInput, int kHeadDim>
struct KvAttention {
  using Params = KvAttentionParams;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps, kHeads = 16, kPositions = 16;
  static constexpr int kBytes = kForm == KvForm::f16 ? 2 : 1;
  // Registers: 168 a thread hold a tile, the next one on its way and the sums of 128
  // bytes of dims; 255 those of 256 bytes. With more dims nothing is asked for ahead.
  static constexpr bool kAsksAhead = kHeadDim <= 128;
  static constexpr int kBlocksPerMultiprocessor = kHeadDim * kBytes <= 128 ? 3 : 2;
  static constexpr bool kHasScales = kForm != KvForm::f16;
  static constexpr int kPerRead = 16 / kBytes;    // dims in 16 bytes
  static constexpr int kKeyChunk = 4 * kPerRead;  // dims of a row that 4 lanes read
  static constexpr int kKeyChunks = kHeadDim / kKeyChunk;
  static constexpr int kChunkSteps = kKeyChunk / 16;  // mma steps
  static constexpr int kSteps = kHeadDim / 16;
  // A lane's values of a row: 16 bytes, or 8 where the row is that short.
  static constexpr int kValueBytes =
      kHeadDim * kBytes >= 128 ? 16 : kHeadDim * kBytes / 8;
  static constexpr int kValueDims = kValueBytes / kBytes;
  static constexpr int kValueChunk = 8 * kValueDims;
  static constexpr int kValueChunks = kHeadDim / kValueChunk;
  static constexpr int kTiles = kHeadDim / 8;  // of values
  static_assert(kKeyChunk * kKeyChunks == kHeadDim && kValueBytes >= 8);

  static constexpr int kQueryBytes = kSteps * 32 * 16;
  static constexpr int kOutRow = kHeadDim + 4;
  static constexpr int kOutBytes = kWarps * kHeads * kOutRow * 4;
  // q's fragments and the heads' factors; then, when q is read no more, the warps' sums.
  static constexpr int kStateBytes = kWarps * kHeads * 2 * 4;
  static constexpr int kSharedBytes =
      (kQueryBytes > kOutBytes ? kQueryBytes : kOutBytes) + kStateBytes + kHeads * 4 + 16;

  struct Keys {
    Words4 words[2][kKeyChunks];
    uint32_t scales[2];  // of positions 2t, 2t+1 of each half, f16
  };
  struct Values {
    uint32_t words[4][kValueChunks][kValueBytes / 4];
    uint32_t scales[2];
  };

  // Two f16 of two bytes of `w`, b and b + 1.
  NIBBLE_DEVICE static uint32_t pair_of_codes(uint32_t w, int b) {
    if constexpr (kForm == KvForm::int8) {
      // w's codes had 128 added: 1024 + code + 128, less 1152.
      return f16x2_sub(permute_bytes(w, 0x64, b == 0 ? 0x4140 : 0x4342), 0x64806480u);
    } else {
      // The code in an f16's upper byte, its exponent one place down: 2^-8 of its value.
      const uint32_t upper = permute_bytes(w, 0, b == 0 ? 0x1404 : 0x3424);
      return (upper & 0x80008000u) | (upper >> 1 & 0x3f803f80u);
    }
  }
  NIBBLE_DEVICE static uint32_t biased(uint32_t w) {
    return kForm == KvForm::int8 ? w ^ 0x80808080u : w;
  }
  // e4m3 codes come out as 2^-8 of their values.
  static constexpr float kUnit = kForm == KvForm::e4m3 ? 256.0f : 1.0f;

  NIBBLE_DEVICE static Keys load_keys(const Params& p, int64_t row, int head, int base,
                                      int end, int g, int t) {
    Keys keys;
    const int64_t width = static_cast<int64_t>(p.kv_heads) * kHeadDim * kBytes;
    NIBBLE_UNROLL
    for (int u = 0; u < 2; ++u) {
      const int at = base + 8 * u + g < end ? base + 8 * u + g : end - 1;
      const uint8_t* from = p.k + (row + at) * width +
                            static_cast<int64_t>(head) * kHeadDim * kBytes + 16 * t;
      NIBBLE_UNROLL
      for (int c = 0; c < kKeyChunks; ++c) {
        keys.words[u][c] = stream16(from + c * kKeyChunk * kBytes);
      }
      if constexpr (kHasScales) {
        keys.scales[u] = load_scales(p, p.k_scales, row, head, base + 8 * u, end, t);
      }
    }
    return keys;
  }
  // The scales of positions base + 2t and the next, as a pair.
  NIBBLE_DEVICE static uint32_t load_scales(const Params& p, const uint16_t* scales,
                                            int64_t row, int head, int base, int end,
                                            int t) {
    const int first = base + 2 * t < end ? base + 2 * t : end - 1;
    const int second = base + 2 * t + 1 < end ? base + 2 * t + 1 : end - 1;
    return scales[(row + first) * p.kv_heads + head] |
           static_cast<uint32_t>(scales[(row + second) * p.kv_heads + head]) << 16;
  }
  NIBBLE_DEVICE static Values load_values(const Params& p, int64_t row, int head,
                                          int base, int end, int g, int t) {
    Values values;
    const int64_t width = static_cast<int64_t>(p.kv_heads) * kHeadDim * kBytes;
    NIBBLE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int position = base + i / 2 * 8 + 2 * t + i % 2;
      const int at = position < end ? position : end - 1;
      const uint8_t* from = p.v + (row + at) * width +
                            static_cast<int64_t>(head) * kHeadDim * kBytes +
                            g * kValueBytes;
      NIBBLE_UNROLL
      for (int c = 0; c < kValueChunks; ++c) {
        if constexpr (kValueBytes == 16) {
          const Words4 w = stream16(from + c * kValueChunk * kBytes);
          values.words[i][c][0] = w.x, values.words[i][c][1] = w.y;
          values.words[i][c][2] = w.z, values.words[i][c][3] = w.w;
        } else {
          const Words2 w = load8(from + c * kValueChunk * kBytes);
          values.words[i][c][0] = w.x, values.words[i][c][1] = w.y;
        }
      }
    }
    if constexpr (kHasScales) {
      NIBBLE_UNROLL
      for (int u = 0; u < 2; ++u) {
        values.scales[u] = load_scales(p, p.v_scales, row, head, base + 8 * u, end, t);
      }
    }
    return values;
  }

  // The value tile's b for dims of word i, number j in it.
  NIBBLE_DEVICE static void value_pairs(const Values& v, int c, int i, int j,
                                        uint32_t& b0, uint32_t& b1) {
    if constexpr (kForm == KvForm::f16) {
      const uint32_t select = j == 0 ? 0x5410 : 0x7632;
      b0 = permute_bytes(v.words[0][c][i], v.words[1][c][i], select);
      b1 = permute_bytes(v.words[2][c][i], v.words[3][c][i], select);
    } else {
      const uint32_t select = j < 2 ? 0x5140 : 0x7362;  // bytes of both rows in turn
      b0 = pair_of_codes(
          permute_bytes(biased(v.words[0][c][i]), biased(v.words[1][c][i]), select),
          j % 2);
      b1 = pair_of_codes(
          permute_bytes(biased(v.words[2][c][i]), biased(v.words[3][c][i]), select),
          j % 2);
    }
  }

  // q's fragments into shared memory, each head divided by a power of two; factors[head]
  // is what its scores are to be multiplied by.
  NIBBLE_DEVICE static void load_queries(const Params& p, int batch, int first_head,
                                         int heads, uint32_t* fragments, float* factors) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    uint16_t* const halves = reinterpret_cast<uint16_t*>(fragments);
    for (int h = warp; h < kHeads; h += kWarps) {
      const uint16_t* row =
          p.q + batch * p.q_stride + static_cast<int64_t>(first_head + h) * kHeadDim;
      float x[kHeadDim / 32], most = 0;
      NIBBLE_UNROLL
      for (int i = 0; i < kHeadDim / 32; ++i) {
        x[i] = h < heads ? low_float<kInput>(row[lane + 32 * i]) : 0;
        most = larger(most, magnitude(x[i]));
      }
      most = warp_max(most);
      // The power of two of a normal number; of zeros and smaller ones, 1.
      const uint32_t exponent = word_of_float(most) & 0x7f800000u;
      const bool normal = exponent > 0 && exponent < 0x7f000000u;
      const float power = normal ? as_float(exponent) : 1.0f;
      const float inverse = normal ? as_float(0x7f000000u - exponent) : 1.0f;
      if (lane == 0) factors[h] = p.scale * power * kUnit;
      NIBBLE_UNROLL
      for (int i = 0; i < kHeadDim / 32; ++i) {
        const int dim = lane + 32 * i;
        const int chunk = dim / kKeyChunk, t = dim % kKeyChunk / kPerRead,
                  step = dim % kPerRead / 4;
        const int word = dim % 4 / 2 * 2 + h / 8;  // a's
        const int at = (chunk * kChunkSteps + step) * 32 + h % 8 * 4 + t;
        halves[(at * 4 + word) * 2 + dim % 2] = float_to_f16(x[i] * inverse);
      }
    }
  }

  NIBBLE_DEVICE static void run(const Params& p) {
    uint32_t* const fragments = reinterpret_cast<uint32_t*>(shared_memory());
    float* const factors = reinterpret_cast<float*>(
        shared_memory() + (kQueryBytes > kOutBytes ? kQueryBytes : kOutBytes) +
        kStateBytes);
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int g = lane / 4, t = lane % 4;
    const int group = p.heads / p.kv_heads, tiles = (group + kHeads - 1) / kHeads;
    const int head = block_y() / tiles;  // of k and v
    const int first_head = head * group + block_y() % tiles * kHeads;
    const int left = head * group + group - first_head;
    const int heads = left < kHeads ? left : kHeads;
    const int batch = block_z(), split = block_x();
    const int length = p.lengths[batch];
    const int first = p.window > 0 && length > p.window ? length - p.window : 0;
    const int per_split = positions_per_split(p, length - first);
    const int begin = first + split * per_split;
    const int end = begin + per_split < length ? begin + per_split : length;
    const int64_t row = batch * p.capacity;

    load_queries(p, batch, first_head, heads, fragments, factors);
    sync_threads();

    constexpr float kNone = -3.0e38f;  // below every score
    float most[2] = {kNone, kNone}, sum[2] = {0, 0};
    float out[kTiles][4];
    NIBBLE_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) out[j][i] = 0;
    }
    const float factor[2] = {factors[g], factors[g + 8]};
    int base = begin + warp * kPositions;
    float score[2][4];
    if constexpr (kAsksAhead) {
      Keys keys = {};
      Values values = {};
      if (base < end) {
        keys = load_keys(p, row, head, base, end, g, t);
        values = load_values(p, row, head, base, end, g, t);
      }
      NIBBLE_NO_UNROLL
      for (; base < end; base += kWarps * kPositions) {
        const Keys k = keys;
        const Values v = values;
        const int next = base + kWarps * kPositions;
        if (next < end) {
          keys = load_keys(p, row, head, next, end, g, t);
          values = load_values(p, row, head, next, end, g, t);
        }
        multiply_keys(k, fragments, lane, score);
        attend(k, v, score, factor, base, end, t, most, sum, out);
      }
    } else {
      NIBBLE_NO_UNROLL
      for (; base < end; base += kWarps * kPositions) {
        const Keys k = load_keys(p, row, head, base, end, g, t);
        multiply_keys(k, fragments, lane, score);
        const Values v = load_values(p, row, head, base, end, g, t);
        attend(k, v, score, factor, base, end, t, most, sum, out);
      }
    }
    finish(p, most, sum, out, batch, first_head, heads, length - first);
  }

  NIBBLE_DEVICE static void multiply_keys(const Keys& k, const uint32_t* fragments,
                                          int lane, float (&score)[2][4]) {
    NIBBLE_UNROLL
    for (int u = 0; u < 2; ++u) {
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) score[u][i] = 0;
    }
    NIBBLE_UNROLL
    for (int c = 0; c < kKeyChunks; ++c) {
      NIBBLE_UNROLL
      for (int step = 0; step < kChunkSteps; ++step) {
        const Words4 q = *reinterpret_cast<const Words4*>(
            fragments + ((c * kChunkSteps + step) * 32 + lane) * 4);
        const uint32_t a[4] = {q.x, q.y, q.z, q.w};
        NIBBLE_UNROLL
        for (int u = 0; u < 2; ++u) {
          const Words4& w = k.words[u][c];
          const uint32_t words[4] = {w.x, w.y, w.z, w.w};
          if constexpr (kForm == KvForm::f16) {
            mma_f16(score[u], a, words[2 * step], words[2 * step + 1]);
          } else {
            const uint32_t codes = biased(words[step]);
            mma_f16(score[u], a, pair_of_codes(codes, 0), pair_of_codes(codes, 1));
          }
        }
      }
    }
  }

  NIBBLE_DEVICE static void attend(const Keys& k, const Values& v, float (&score)[2][4],
                                   const float (&factor)[2], int base, int end, int t,
                                   float (&most)[2], float (&sum)[2],
                                   float (&out)[kTiles][4]) {
    constexpr float kNone = -3.0e38f;
    float inverse[2][2];  // 1 / the values' scale
    float highest[2] = {most[0], most[1]};
    NIBBLE_UNROLL
    for (int u = 0; u < 2; ++u) {
      NIBBLE_UNROLL
      for (int j = 0; j < 2; ++j) {
        float key_scale = 1, shift = 0;
        inverse[u][j] = 1;
        if constexpr (kHasScales) {
          const auto half = [&](uint32_t pair) {
            return f16_to_float(pair >> (16 * j) & 0xffff);
          };
          key_scale = half(k.scales[u]);
          const float scale = half(v.scales[u]);
          shift = log_2(scale);
          inverse[u][j] = quotient(1.0f, scale);
        }
        const bool exists = base + 8 * u + 2 * t + j < end;
        NIBBLE_UNROLL
        for (int h = 0; h < 2; ++h) {
          float& a = score[u][2 * h + j];
          a = exists ? a * key_scale * factor[h] + shift : kNone;
          highest[h] = larger(highest[h], a);
        }
      }
    }
    float shrink[2];
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      highest[h] = larger(highest[h], shuffle_xor(highest[h], 1));
      highest[h] = larger(highest[h], shuffle_xor(highest[h], 2));
      shrink[h] = power_of_2(most[h] - highest[h]);
      most[h] = highest[h];
      sum[h] = sum[h] * shrink[h];
    }
    uint32_t a[4];
    NIBBLE_UNROLL
    for (int u = 0; u < 2; ++u) {
      NIBBLE_UNROLL
      for (int h = 0; h < 2; ++h) {
        uint32_t pair = 0;
        NIBBLE_UNROLL
        for (int j = 0; j < 2; ++j) {
          const float weight = power_of_2(score[u][2 * h + j] - most[h]);
          sum[h] = sum[h] + weight * inverse[u][j];
          pair |= static_cast<uint32_t>(float_to_f16(weight)) << (16 * j);
        }
        a[2 * u + h] = pair;
      }
    }
    NIBBLE_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) out[j][i] = out[j][i] * shrink[i / 2];
    }
    NIBBLE_UNROLL
    for (int c = 0; c < kValueChunks; ++c) {
      NIBBLE_UNROLL
      for (int i = 0; i < kValueBytes / 4; ++i) {
        NIBBLE_UNROLL
        for (int j = 0; j < 4 / kBytes; ++j) {
          uint32_t b0, b1;
          value_pairs(v, c, i, j, b0, b1);
          mma_f16(out[c * kValueDims + i * (4 / kBytes) + j], a, b0, b1);
        }
      }
    }
  }

  // Joins the warps, then the parts of the context, and writes y.
  NIBBLE_DEVICE static void finish(const Params& p, const float (&most)[2],
                                   const float (&sum)[2], const float (&out)[kTiles][4],
                                   int batch, int first_head, int heads, int context) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int g = lane / 4, t = lane % 4;
    float* const outs = reinterpret_cast<float*>(shared_memory());
    float* const mosts = reinterpret_cast<float*>(
        shared_memory() + (kQueryBytes > kOutBytes ? kQueryBytes : kOutBytes));
    float* const sums = mosts + kWarps * kHeads;
    uint32_t* const is_last =
        reinterpret_cast<uint32_t*>(sums + kWarps * kHeads + kHeads);
    sync_threads();  // q is read no more
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      float total = sum[h] + shuffle_xor(sum[h], 1);
      total = total + shuffle_xor(total, 2);
      if (t == 0) {
        mosts[warp * kHeads + g + 8 * h] = most[h];
        sums[warp * kHeads + g + 8 * h] = total;
      }
    }
    NIBBLE_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int column = 2 * t + i % 2;
        const int dim =
            j / kValueDims * kValueChunk + column * kValueDims + j % kValueDims;
        outs[(warp * kHeads + g + i / 2 * 8) * kOutRow + dim] = out[j][i];
      }
    }
    sync_threads();
    const int per_split = positions_per_split(p, context);
    const int used = (context + per_split - 1) / per_split;
    const int splits = used < p.splits ? used : p.splits;
    const int split = block_x();
    constexpr int kPart = kHeadDim + 2;
    float* const parts =
        p.partial +
        (static_cast<int64_t>(batch) * p.heads + first_head) * p.splits * kPart;
    for (int i = thread_index(); i < heads * kHeadDim && split < splits; i += kThreads) {
      const int h = i / kHeadDim, dim = i % kHeadDim;
      float highest = mosts[h];
      for (int w = 1; w < kWarps; ++w) highest = larger(highest, mosts[w * kHeads + h]);
      float total = 0, value = 0;
      for (int w = 0; w < kWarps; ++w) {
        const float shrink = power_of_2(mosts[w * kHeads + h] - highest);
        total = total + sums[w * kHeads + h] * shrink;
        value = value + outs[(w * kHeads + h) * kOutRow + dim] * shrink;
      }
      if (splits == 1) {
        store_output(p.y, place(p, batch, first_head + h, dim), p.output,
                     quotient(value * kUnit, total));
      } else {
        float* part = parts + (static_cast<int64_t>(h) * p.splits + split) * kPart;
        part[dim] = value;
        if (dim == 0) part[kHeadDim] = highest, part[kHeadDim + 1] = total;
      }
    }
    if (p.splits == 1) return;
    // Every block of the launch counts itself, also those beyond a short context.
    memory_fence();
    sync_threads();
    uint32_t* const counter = p.counters + batch * block_rows(p) + block_y();
    if (thread_index() == 0) {
      *is_last = atomic_add(counter, 1) == static_cast<uint32_t>(p.splits - 1);
    }
    sync_threads();
    if (*is_last == 0) return;
    memory_fence();
    for (int i = thread_index(); i < heads * kHeadDim && splits > 1; i += kThreads) {
      const int h = i / kHeadDim, dim = i % kHeadDim;
      const auto part = [&](int s, int at) {
        return as_float(load_fresh(reinterpret_cast<const uint32_t*>(
            parts + (static_cast<int64_t>(h) * p.splits + s) * kPart + at)));
      };
      float highest = part(0, kHeadDim);
      for (int s = 1; s < splits; ++s) highest = larger(highest, part(s, kHeadDim));
      float total = 0, value = 0;
      for (int s = 0; s < splits; ++s) {
        const float shrink = power_of_2(part(s, kHeadDim) - highest);
        total = total + part(s, kHeadDim + 1) * shrink;
        value = value + part(s, dim) * shrink;
      }
      store_output(p.y, place(p, batch, first_head + h, dim), p.output,
                   quotient(value * kUnit, total));
    }
    if (thread_index() == 0) *counter = 0;
  }

  // By the row's own length: a plan for a long cache serves a short sequence as well.
  NIBBLE_DEVICE static int positions_per_split(const Params& p, int context) {
    constexpr int kStep = kWarps * kPositions;
    const int steps = (context + kStep - 1) / kStep;
    return (steps + p.splits - 1) / p.splits * kStep;
  }
  NIBBLE_DEVICE static int block_rows(const Params& p) {
    const int group = p.heads / p.kv_heads;
    return p.kv_heads * ((group + kHeads - 1) / kHeads);
  }
  NIBBLE_DEVICE static int64_t place(const Params& p, int batch, int head, int dim) {
    return (static_cast<int64_t>(batch) * p.heads + head) * kHeadDim + dim;
  }
};

}  // namespace nibble::cuda
