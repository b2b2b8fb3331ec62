// The CUDA linear kernel: weights through registers into the tensor cores.
//
// A block of 8 warps has 128 rows: warp w the tile w % 4, and of every stage of K (8
// units) the quad of units w / 4. The weight is the mma's A (16 rows), x its B (8 tokens
// a tile). Per stage: x lies in shared memory, copied while the last stage was
// multiplied; a lane's weights, 16 bytes a unit and mma tile, are asked for a whole quad
// ahead, 128 bytes on their way per thread.
//
// Runs of 32 or 128 columns (kFlush slabs) of a group are summed by the tensor cores from
// whole numbers or table values, then scaled in f32. The two quads and the parts of K are
// added in a fixed order.
#pragma once

#include "kernels/ops/linear/cuda_layout.h"

namespace nibble::cuda {

struct LinearParams {
  const uint8_t* codes;
  const uint8_t* scales;
  const uint8_t* zeros;  // or null
  float table[16];
  const uint8_t* x;
  int64_t x_stride;  // bytes
  int x_aligned;     // x and x_stride are multiples of 16
  const float* x_scales;
  const float* bias;
  void* y;
  int64_t y_stride;
  Output output;
  int rows, cols, tiles, units, groups, tokens;
  uint32_t group_inverse;  // slab * group_inverse >> 31 is the slab's group
  int stages, stages_per_split, splits;
  uint32_t* partial;  // [splits][tokens][padded rows]
  uint32_t* counters;
};

// kInput is not read by int8_s8. kFlush: slabs a sum runs before it is scaled, a divisor
// of the group's.
template <LinearForm kForm, Float16 kInput, LinearScale kScale, int kFlush,
          int kTokenTiles>
struct LinearMma {
  using Params = LinearParams;
  static constexpr int kRowWarps = 4, kQuadWarps = 2, kWarps = kRowWarps * kQuadWarps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kBlocksPerMultiprocessor = kTokenTiles <= 2 ? 2 : 1;
  static constexpr int kBlockRows = kRowWarps * kTileRows;
  static constexpr bool kIsS8 = kForm == LinearForm::int8_s8;
  static constexpr bool kHasZeros =
      kForm == LinearForm::int4 || kForm == LinearForm::int8;
  static constexpr int kUnitColumns = unit_columns(kForm);
  static constexpr int kUnitSlabs = kUnitColumns / kSlab;
  static constexpr int kQuad = 4;  // units
  static constexpr int kQuadSlabs = kQuad * kUnitSlabs;
  static constexpr int kStageColumns = kQuadWarps * kQuad * kUnitColumns;
  static constexpr int kXBytes = kIsS8 ? 1 : 2;
  // The padding puts the 8 tokens that a warp reads at once into different banks.
  static constexpr int kXRowBytes = kStageColumns * kXBytes + (kIsS8 ? 32 : 64);
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kXBuffers = kTokens * kXRowBytes * 2 <= (80 << 10) ? 2 : 1;
  static constexpr int kPairsBytes = kForm == LinearForm::table4 ? 256 * 32 * 4 : 0;
  static constexpr int kSumRow = kBlockRows + 4;  // words
  static constexpr int kXAll = kXBuffers * kTokens * kXRowBytes;
  static constexpr int kSumsAll = kQuadWarps * kTokens * kSumRow * 4;
  static constexpr int kSharedBytes =
      kPairsBytes + (kXAll > kSumsAll ? kXAll : kSumsAll) + 16;
  static constexpr int kScaleWords = kScale == LinearScale::f32   ? 4
                                     : kScale == LinearScale::f16 ? 2
                                                                  : 1;
  static constexpr int kFlushes = kQuadSlabs / kFlush;  // a quad
  static_assert(kQuadSlabs % kFlush == 0);

  struct Level {  // of the lane's four rows, in one group
    uint32_t scale[kScaleWords];
    uint32_t zeros;
  };
  struct S8Sum {
    int32_t v[4] = {0, 0, 0, 0};
  };
  struct FloatSum {
    float v[4] = {0, 0, 0, 0};
  };
  template <bool kInteger, class A, class B>
  struct Choose {
    using Type = A;
  };
  template <class A, class B>
  struct Choose<false, A, B> {
    using Type = B;
  };
  using Sum = typename Choose<kIsS8, S8Sum, FloatSum>::Type;

  // Constants of a group for one mma tile: the number that stands for code zero.
  struct Zero {
    uint32_t a, b;           // packed, rows g and g + 8 (int4)
    float float_a, float_b;  // int8 with bf16
  };

  NIBBLE_DEVICE static Zero zero_of(uint32_t zeros, int m) {
    Zero z = {0, 0, 0, 0};
    const uint32_t first = m == 0 ? 0 : 2, second = first + 1;  // bytes of `zeros`
    const auto doubled = [&](uint32_t byte, uint32_t bytes, uint32_t upper) {
      return permute_bytes(bytes, upper, 0x4040u | byte << 8 | byte);
    };
    if constexpr (kForm == LinearForm::int4 && kInput == Float16::f16) {
      z.a = doubled(first, zeros, 0x64);        // 1024 + z
      z.b = doubled(second, zeros << 4, 0xd4);  // -(64 + z)
    } else if constexpr (kForm == LinearForm::int4) {
      z.a = doubled(first, zeros, 0xc3);  // -(128 + z)
      z.b = doubled(second, zeros, 0xc3);
    } else if constexpr (kForm == LinearForm::int8 && kInput == Float16::f16) {
      z.a = doubled(first, zeros, 0x64);
      z.b = doubled(second, zeros, 0x64);
    } else if constexpr (kForm == LinearForm::int8) {
      z.float_a = as_float(permute_bytes(zeros, 0x4b000000u, 0x7650u | first));
      z.float_b = as_float(permute_bytes(zeros, 0x4b000000u, 0x7650u | second));
    }
    return z;
  }

  // The four A words of a step from 4-bit codes.
  NIBBLE_DEVICE static void step_of_4_bits(uint32_t w, const Zero& z,
                                           const uint32_t* pairs, uint32_t (&a)[4]) {
    if constexpr (kForm == LinearForm::table4) {
      // Entry e of this lane is at [e][lane]: 32 lanes, 32 banks.
      const uint8_t* base = reinterpret_cast<const uint8_t*>(pairs);
      a[0] = *reinterpret_cast<const uint32_t*>(base + (w << 7 & 0x7f80));
      a[1] = *reinterpret_cast<const uint32_t*>(base + (w >> 1 & 0x7f80));
      a[2] = *reinterpret_cast<const uint32_t*>(base + (w >> 9 & 0x7f80));
      a[3] = *reinterpret_cast<const uint32_t*>(base + (w >> 17 & 0x7f80));
    } else if constexpr (kInput == Float16::f16) {
      constexpr int kAndOr = (0xf0 & 0xcc) | 0xaa;
      const uint32_t v = w >> 8;
      // 0x6400 is 1024 and its unit in the last place 1: low halves are 1024 + q, high
      // halves 1024 + 16 q, of which 1/16 less 64 + z is q - z; all of it exact.
      a[0] = f16x2_sub(lop3<kAndOr>(w, 0x000f000fu, 0x64006400u), z.a);
      a[1] = f16x2_fma(lop3<kAndOr>(w, 0x00f000f0u, 0x64006400u), 0x2c002c00u, z.b);
      a[2] = f16x2_sub(lop3<kAndOr>(v, 0x000f000fu, 0x64006400u), z.a);
      a[3] = f16x2_fma(lop3<kAndOr>(v, 0x00f000f0u, 0x64006400u), 0x2c002c00u, z.b);
    } else {
      // 0x4300 is 128 in bf16, its unit in the last place 1.
      constexpr int kAndOr = (0xf0 & 0xcc) | 0xaa;
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) {
        a[i] = bf16x2_fma(lop3<kAndOr>(w >> (4 * i), 0x000f000fu, 0x43004300u),
                          0x3f803f80u, i % 2 == 0 ? z.a : z.b);
      }
    }
  }

  // Two A words of a row from 8-bit codes: columns 0, 1 and 2, 3 of the step.
  NIBBLE_DEVICE static void row_of_8_bits(uint32_t w, uint32_t zero, float float_zero,
                                          uint32_t& first, uint32_t& second) {
    if constexpr (kForm == LinearForm::int8 && kInput == Float16::f16) {
      first = f16x2_sub(permute_bytes(w, 0x64, 0x4341), zero);
      second = f16x2_sub(permute_bytes(w, 0x64, 0x4240), zero);
    } else if constexpr (kForm == LinearForm::int8) {
      // By f32: 0x4b000000 is 2^23. What is left has 8 bits, which a bf16 holds.
      const auto number = [&](uint32_t byte) {
        return word_of_float(as_float(permute_bytes(w, 0x4b000000u, 0x7650u | byte)) -
                             float_zero);
      };
      first = permute_bytes(number(1), number(3), 0x7632);
      second = permute_bytes(number(0), number(2), 0x7632);
    } else {
      first = fp8_pair(w);
      second = fp8_pair(w << 8);
    }
  }
  // Codes in bytes 1 and 3. e4m3 comes out as 2^-8 of its value (pack_linear's scales
  // make up for it), e5m2, the upper half of an f16, as itself.
  NIBBLE_DEVICE static uint32_t fp8_pair(uint32_t w) {
    if constexpr (kForm == LinearForm::e5m2 && kInput == Float16::f16) {
      return w & 0xff00ff00u;
    } else {
      constexpr int kDown =
          (kForm == LinearForm::e4m3 ? 1 : 0) + (kInput == Float16::bf16 ? 3 : 0);
      constexpr uint32_t kMask = (0x7f00u >> kDown) * 0x10001u;
      const uint32_t bits = (w & 0x80008000u) | (w >> kDown & kMask);
      if constexpr (kInput == Float16::f16) return bits;
      return bf16x2_fma(bits, 0x77807780u, 0x80008000u);  // times 2^112
    }
  }

  NIBBLE_DEVICE static float scale_of(const Level& level, int row) {
    if constexpr (kScale == LinearScale::f32) return as_float(level.scale[row]);
    if constexpr (kScale == LinearScale::f16) {
      return f16_to_float(level.scale[row / 2] >> (16 * (row % 2)) & 0xffff);
    }
    const uint32_t code = level.scale[0] >> (8 * row) & 255;
    return as_float(code == 0 ? 0x00400000u : code << 23);  // 2^-127 is no normal number
  }
  NIBBLE_DEVICE static Level load_level(const Params& p, int tile, int group, int g) {
    Level level;
    level.zeros = kForm == LinearForm::int8 ? 0x80808080u : 0x08080808u;
    const int64_t place = (static_cast<int64_t>(tile) * p.groups + group) * 32 + 4 * g;
    if constexpr (kScale == LinearScale::f32) {
      const Words4 v = load16(p.scales + 4 * place);
      level.scale[0] = v.x, level.scale[1] = v.y, level.scale[2] = v.z,
      level.scale[3] = v.w;
    } else if constexpr (kScale == LinearScale::f16) {
      const Words2 v = load8(p.scales + 2 * place);
      level.scale[0] = v.x, level.scale[1] = v.y;
    } else {
      level.scale[0] = load4(p.scales + place);
    }
    if constexpr (kHasZeros) {
      if (p.zeros != nullptr) level.zeros = load4(p.zeros + place);
    }
    return level;
  }

  // Starts the copies of x's columns of a stage.
  NIBBLE_DEVICE static void copy_x(const Params& p, int stage, uint8_t* to) {
    constexpr int kPieces = kStageColumns * kXBytes / 16;  // of a row
    const int64_t row_bytes = static_cast<int64_t>(p.cols) * kXBytes;
    for (int i = thread_index(); i < p.tokens * kPieces; i += kThreads) {
      const int token = i / kPieces, piece = i % kPieces;
      const int64_t at =
          static_cast<int64_t>(stage) * kStageColumns * kXBytes + piece * 16;
      const int64_t left = row_bytes - at;
      const int bytes = left >= 16 ? 16 : left > 0 ? static_cast<int>(left) : 0;
      const uint8_t* row = p.x + token * p.x_stride;
      uint8_t* out = to + token * kXRowBytes + piece * 16;
      if (p.x_aligned) {
        copy_async16(out, bytes > 0 ? row + at : p.x, bytes);
      } else {
        for (int b = 0; b < 16; b += kXBytes) {
          if constexpr (kIsS8) {
            out[b] = b < bytes ? row[at + b] : 0;
          } else {
            *reinterpret_cast<uint16_t*>(out + b) =
                b < bytes ? *reinterpret_cast<const uint16_t*>(row + at + b) : 0;
          }
        }
      }
    }
  }

  NIBBLE_DEVICE static void fill_pairs(const Params& p, uint32_t* pairs) {
    // Thread e writes entry e, each lane's copy in another bank.
    const int entry = thread_index();
    const uint32_t value = float_to_16<kInput>(p.table[entry % 16]) |
                           static_cast<uint32_t>(float_to_16<kInput>(p.table[entry / 16]))
                               << 16;
    for (int i = 0; i < 32; ++i) pairs[entry * 32 + (entry + i) % 32] = value;
  }

  NIBBLE_DEVICE static void run(const Params& p) {
    uint8_t* const pairs_memory = shared_memory();
    uint8_t* const x_memory = pairs_memory + kPairsBytes;
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int g = lane / 4, t = lane % 4;
    const int row_warp = warp % kRowWarps, quad_warp = warp / kRowWarps;
    const int tile = block_x() * kRowWarps + row_warp;
    const int split = block_y();
    const int first_stage = split * p.stages_per_split;
    const int end_stage = first_stage + p.stages_per_split < p.stages
                              ? first_stage + p.stages_per_split
                              : p.stages;
    const uint8_t* const codes =
        p.codes + (static_cast<int64_t>(tile) * p.units * 64 + lane) * 16;

    Words4 w[kQuad][2];
    Level levels[kFlushes];
    const auto has_unit = [&](int stage, int d) {
      return tile < p.tiles && stage < end_stage &&
             (stage * kQuadWarps + quad_warp) * kQuad + d < p.units;
    };
    const auto load_weights = [&](int stage, int d) {
      if (!has_unit(stage, d)) return;
      const int unit = (stage * kQuadWarps + quad_warp) * kQuad + d;
      NIBBLE_UNROLL
      for (int m = 0; m < 2; ++m) {
        w[d][m] = stream16(codes + (static_cast<int64_t>(unit) * 2 + m) * 512);
      }
    };
    // The levels of a quad's f-th sum.
    const auto load_levels = [&](int stage, int f) {
      if constexpr (!kIsS8) {
        if (!has_unit(stage, f * kFlush / kUnitSlabs)) return;
        const uint32_t slab = static_cast<uint32_t>(
            (stage * kQuadWarps + quad_warp) * kQuadSlabs + f * kFlush);
        const int group =
            static_cast<int>(static_cast<uint64_t>(slab) * p.group_inverse >> 31);
        levels[f] = load_level(p, tile, group < p.groups ? group : p.groups - 1, g);
      }
    };

    copy_x(p, first_stage, x_memory);
    NIBBLE_UNROLL
    for (int d = 0; d < kQuad; ++d) load_weights(first_stage, d);
    NIBBLE_UNROLL
    for (int f = 0; f < kFlushes; ++f) load_levels(first_stage, f);
    if constexpr (kForm == LinearForm::table4) {
      fill_pairs(p, reinterpret_cast<uint32_t*>(pairs_memory));
    }
    const uint32_t* const pairs = reinterpret_cast<const uint32_t*>(pairs_memory) + lane;

    Sum total[2][kTokenTiles];
    NIBBLE_NO_UNROLL
    for (int stage = first_stage; stage < end_stage; ++stage) {
      const int buffer = kXBuffers == 2 ? (stage - first_stage) % 2 : 0;
      copies_arrived();
      sync_threads();
      if constexpr (kXBuffers == 2) {
        if (stage + 1 < end_stage) {
          copy_x(p, stage + 1, x_memory + (1 - buffer) * kTokens * kXRowBytes);
        }
      }
      const uint8_t* const x = x_memory + buffer * kTokens * kXRowBytes +
                               quad_warp * kQuad * kUnitColumns * kXBytes +
                               8 * t * kXBytes;
      Sum part[2][kTokenTiles];
      Zero zero[2] = {};
      NIBBLE_UNROLL
      for (int slab = 0; slab < kQuadSlabs; ++slab) {
        const int d = slab / kUnitSlabs, in_unit = slab % kUnitSlabs, f = slab / kFlush;
        if (has_unit(stage, d)) {
          if constexpr (kHasZeros) {
            if (slab % kFlush == 0) {
              NIBBLE_UNROLL
              for (int m = 0; m < 2; ++m) zero[m] = zero_of(levels[f].zeros, m);
            }
          }
          multiply_slab(p, w[d], in_unit, x + slab * kSlab * kXBytes, g, zero, pairs,
                        kIsS8 ? total : part);
          if constexpr (!kIsS8) {
            const bool ends = slab % kFlush == kFlush - 1;
            // A quad whose last units do not exist ends with the unit before them.
            const bool is_last = slab + 1 < kQuadSlabs && in_unit == kUnitSlabs - 1 &&
                                 !has_unit(stage, d + 1);
            if (ends || is_last) {
              NIBBLE_UNROLL
              for (int m = 0; m < 2; ++m) {
                NIBBLE_UNROLL
                for (int j = 0; j < kTokenTiles; ++j) {
                  NIBBLE_UNROLL
                  for (int i = 0; i < 4; ++i) {
                    total[m][j].v[i] =
                        fused(part[m][j].v[i], scale_of(levels[f], 2 * m + i / 2),
                              total[m][j].v[i]);
                  }
                  part[m][j] = Sum();
                }
              }
            }
          }
        }
        if (slab % kFlush == kFlush - 1) load_levels(stage + 1, f);
        if (in_unit == kUnitSlabs - 1) load_weights(stage + 1, d);
      }
      if constexpr (kXBuffers == 1) {
        sync_threads();
        if (stage + 1 < end_stage) copy_x(p, stage + 1, x_memory);
      }
    }
    finish(p, total, g, t, row_warp, quad_warp, x_memory);
  }

  // part += the slab's products.
  NIBBLE_DEVICE static void multiply_slab(const Params& p, const Words4 (&w)[2],
                                          int in_unit, const uint8_t* x, int g,
                                          const Zero (&zero)[2], const uint32_t* pairs,
                                          Sum (&part)[2][kTokenTiles]) {
    uint32_t b[kTokenTiles][4];
    NIBBLE_UNROLL
    for (int j = 0; j < kTokenTiles; ++j) {
      b[j][0] = b[j][1] = b[j][2] = b[j][3] = 0;
      if (8 * j + g < p.tokens) {
        const uint8_t* row = x + (8 * j + g) * kXRowBytes;
        if constexpr (kIsS8) {
          const Words2 v = *reinterpret_cast<const Words2*>(row);
          b[j][0] = v.x, b[j][1] = v.y;
        } else {
          const Words4 v = *reinterpret_cast<const Words4*>(row);
          b[j][0] = v.x, b[j][1] = v.y, b[j][2] = v.z, b[j][3] = v.w;
        }
      }
    }
    NIBBLE_UNROLL
    for (int m = 0; m < 2; ++m) {
      if constexpr (kIsS8) {
        const uint32_t a[4] = {w[m].x, w[m].y, w[m].z, w[m].w};
        NIBBLE_UNROLL
        for (int j = 0; j < kTokenTiles; ++j) mma_s8(part[m][j].v, a, b[j][0], b[j][1]);
      } else {
        NIBBLE_UNROLL
        for (int step = 0; step < 2; ++step) {
          uint32_t a[4];
          if constexpr (is_4_bit(kForm)) {
            const uint32_t first = in_unit == 0 ? w[m].x : w[m].z;
            const uint32_t second = in_unit == 0 ? w[m].y : w[m].w;
            step_of_4_bits(step == 0 ? first : second, zero[m], pairs, a);
          } else {
            row_of_8_bits(step == 0 ? w[m].x : w[m].z, zero[m].a, zero[m].float_a, a[0],
                          a[2]);
            row_of_8_bits(step == 0 ? w[m].y : w[m].w, zero[m].b, zero[m].float_b, a[1],
                          a[3]);
          }
          NIBBLE_UNROLL
          for (int j = 0; j < kTokenTiles; ++j) {
            mma<kInput>(part[m][j].v, a, b[j][2 * step], b[j][2 * step + 1]);
          }
        }
      }
    }
  }

  NIBBLE_DEVICE static uint32_t word(float x) { return word_of_float(x); }
  NIBBLE_DEVICE static uint32_t word(int32_t x) { return static_cast<uint32_t>(x); }
  NIBBLE_DEVICE static uint32_t add_words(uint32_t a, uint32_t b) {
    if constexpr (kIsS8) return a + b;
    return word_of_float(as_float(a) + as_float(b));
  }

  // Adds the quads, then the parts of K, and writes y.
  NIBBLE_DEVICE static void finish(const Params& p, const Sum (&total)[2][kTokenTiles],
                                   int g, int t, int row_warp, int quad_warp,
                                   uint8_t* memory) {
    uint32_t* const sums = reinterpret_cast<uint32_t*>(memory);
    uint32_t* const is_last = sums + kQuadWarps * kTokens * kSumRow;
    sync_threads();  // x is read no more
    NIBBLE_UNROLL
    for (int m = 0; m < 2; ++m) {
      NIBBLE_UNROLL
      for (int j = 0; j < kTokenTiles; ++j) {
        NIBBLE_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int token = 8 * j + 2 * t + i % 2;
          const int row = row_warp * kTileRows + 16 * m + i / 2 * 8 + g;
          sums[(quad_warp * kTokens + token) * kSumRow + row] = word(total[m][j].v[i]);
        }
      }
    }
    sync_threads();
    const int first_row = block_x() * kBlockRows;
    const int64_t padded_rows =
        static_cast<int64_t>((p.tiles + kRowWarps - 1) / kRowWarps) * kBlockRows;
    for (int i = thread_index(); i < p.tokens * kBlockRows; i += kThreads) {
      const int token = i / kBlockRows, row = i % kBlockRows;
      const uint32_t sum =
          add_words(sums[token * kSumRow + row], sums[(kTokens + token) * kSumRow + row]);
      if (p.splits == 1) {
        write(p, token, first_row + row, sum);
      } else {
        p.partial[(static_cast<int64_t>(block_y()) * p.tokens + token) * padded_rows +
                  first_row + row] = sum;
      }
    }
    if (p.splits == 1) return;
    memory_fence();
    sync_threads();
    if (thread_index() == 0) {
      *is_last =
          atomic_add(p.counters + block_x(), 1) == static_cast<uint32_t>(p.splits - 1);
    }
    sync_threads();
    if (*is_last == 0) return;
    memory_fence();
    for (int i = thread_index(); i < p.tokens * kBlockRows; i += kThreads) {
      const int token = i / kBlockRows, row = i % kBlockRows;
      const uint32_t* part = p.partial + token * padded_rows + first_row + row;
      uint32_t sum = load_fresh(part);
      for (int s = 1; s < p.splits; ++s) {
        sum = add_words(sum, load_fresh(part + s * p.tokens * padded_rows));
      }
      write(p, token, first_row + row, sum);
    }
    if (thread_index() == 0) p.counters[block_x()] = 0;
  }

  NIBBLE_DEVICE static void write(const Params& p, int token, int row, uint32_t sum) {
    if (row >= p.rows) return;
    float value = as_float(sum);
    if constexpr (kIsS8) {
      // linear.h's definition for one group, with its roundings.
      const float scale = as_float(
          load4(p.scales + 4 * (static_cast<int64_t>(row / kTileRows) * kTileRows +
                                level_place(row % kTileRows))));
      value = static_cast<float>(static_cast<int32_t>(sum)) * scale;
      value = value * p.x_scales[token];
    } else if (p.x_scales != nullptr) {
      value = value * p.x_scales[token];
    }
    if (p.bias != nullptr) value = value + p.bias[row];
    store_output(p.y, token * p.y_stride + row, p.output, value);
  }
};

}  // namespace nibble::cuda
