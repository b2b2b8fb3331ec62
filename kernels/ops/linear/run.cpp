#include "kernels/ops/linear/run.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"
#include "kernels/ops/linear/linear_bf16.h"
#include "kernels/ops/linear/linear_tiles.h"
#include "kernels/ops/linear/repack.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/quantize_rows/quantize_rows.h"
#include "kernels/ops/scratch.h"

namespace nibble {
namespace {

// Columns decoded at a time: 512 of 32 outputs are 64 KB, and 12 tokens of them 24 KB, so
// that the tile's operands stay in the first two caches.
constexpr int64_t kBlockColumns = 512;
// Token tiles a task runs through one decoded block: a prompt of 512 at once.
constexpr int64_t kTaskTiles = 44;
// More where decoding a block costs as much as some hundred tokens' products.
constexpr int64_t kAnyTaskTiles = 100;
// Codes that one task of a direct run reads at least: less is not worth a thread's time.
constexpr int64_t kTaskBytes = 32 << 10;

// Bytes of activations that tasks of bf16 products go through together.
constexpr int64_t kChunkBytes = 5 << 20;

// Of tile products: half of the 2 MB second cache that every CPU with AMX has. One core
// reads the third at some 30 GB/s, a quarter of what tiles take activations in at.
constexpr int64_t kTileChunkBytes = 1 << 20;

// The end of the block that starts at `first`: whole groups, or a part of a longer one.
int64_t block_end(int64_t first, int64_t group, int64_t cols) {
  if (group >= kBlockColumns) {
    const int64_t group_end = (first / group + 1) * group;
    return std::min({cols, group_end, first + kBlockColumns});
  }
  return std::min(cols, first + kBlockColumns / group * group);
}

// acc [mr, width] + bias to rows [t, t + count) of y, columns [n, min(n + width,
// y.cols)).
void store_tile(const float* acc, int64_t width, int64_t t, int64_t count, int64_t n,
                const float* bias, MatrixView<float> y) {
  const int64_t columns = std::min(width, y.cols - n);
  for (int64_t m = 0; m < count; ++m) {
    float* out = y.row(t + m) + n;
    const float* in = acc + m * width;
    if (bias == nullptr) {
      std::memcpy(out, in, static_cast<size_t>(columns) * sizeof(float));
    } else {
      for (int64_t j = 0; j < columns; ++j) out[j] = in[j] + bias[n + j];
    }
  }
}

struct Tile {
  int64_t first;  // row of x
  int64_t count;  // rows of x in it
  int mr;         // rows it takes, padded
  int64_t at;     // rows of tiles before it, padded
};

// The calling thread's until it asks again: one linear layer runs at a time on a thread.
std::vector<Tile>& empty_tiles() {
  static thread_local std::vector<Tile> tiles;
  tiles.clear();
  return tiles;
}
const std::vector<Tile>& one_tile(int64_t n) {
  std::vector<Tile>& tiles = empty_tiles();
  tiles.push_back({0, n, static_cast<int>(n), 0});
  return tiles;
}
const std::vector<Tile>& tiles_of(int large, int small, int64_t n) {
  std::vector<Tile>& tiles = empty_tiles();
  for (int64_t first = 0, at = 0; first < n;) {
    const int mr = n - first > large - small ? large : small;  // as PanelIsa::next_tile
    tiles.push_back({first, std::min<int64_t>(mr, n - first), mr, at});
    first += mr;
    at += mr;
  }
  return tiles;
}
const std::vector<Tile>& tiles_of(const PanelIsa& isa, int64_t n) {
  return tiles_of(isa.tile, isa.small_tile, n);
}

// The step of the row's tile products; 0 where it has none, or none for these groups.
int64_t tile_step_of(const PreparedLinear& w, int64_t bytes) {
  if (w.kernel->tiles == nullptr) return 0;
  return tile_step(w.groups == 1 ? w.padded_cols : (w.group + 7) / 8 * 8, w.padded_cols,
                   bytes);
}

// Tiles, of `bytes` each, that all panels meet before the next ones where tile products
// run: as many as the second cache keeps, evenly. An output's sum is the same in any cut.
int64_t tile_chunk(int64_t tile_count, int64_t bytes) {
  const int64_t most = std::clamp<int64_t>(kTileChunkBytes / bytes, 1, kTaskTiles);
  const int64_t chunks = (tile_count + most - 1) / most;
  return (tile_count + chunks - 1) / chunks;
}

// Rows [tile.count of them, cols] as linear_tiles.h has x; rows that are not there are 0.
template <class T>
void pack_tiles(const T* rows, int64_t cols, const Tile& tile, int64_t step, T* out) {
  constexpr int64_t kTileRows = 16;
  for (int64_t m = 0; m < tile.mr; ++m) {
    T* to = out + m / kTileRows * kTileRows * cols + m % kTileRows * step;
    for (int64_t c = 0; c < cols; c += step, to += kTileRows * step) {
      if (m < tile.count) {
        std::memcpy(to, rows + m * cols + c, static_cast<size_t>(step) * sizeof(T));
      } else {
        std::memset(to, 0, static_cast<size_t>(step) * sizeof(T));
      }
    }
  }
}

// The product of x with pairs of panels. block(pair, first, end, w0, w1) points w0 and w1
// to the columns [first, end) of the pair's panels, f32 [end - first, lanes].
template <class MakeBlock>
void run_tiles(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
               MatrixView<float> y, int64_t task_tiles, const MakeBlock& block) {
  const PanelIsa& isa = *w.kernel->panel;
  const std::vector<Tile>& tiles = tiles_of(isa, x.rows);
  const int64_t tile_count = static_cast<int64_t>(tiles.size());
  static thread_local Scratch<float> packed_scratch;
  float* packed =
      packed_scratch.get(static_cast<size_t>(isa.padded_rows(x.rows) * w.cols));
  parallel_for(tile_count, [&](int64_t i) {
    const Tile& tile = tiles[static_cast<size_t>(i)];
    pack_rows(x.row(tile.first), x.stride, tile.count, w.cols, tile.mr,
              packed + tile.at * w.cols);
  });

  const int64_t chunks = (tile_count + task_tiles - 1) / task_tiles;
  const int64_t width = 2 * w.lanes;
  parallel_for(w.panels / 2 * chunks, [&](int64_t task) {
    const int64_t pair = task / chunks;
    const int64_t begin = task % chunks * task_tiles;
    const int64_t end = std::min(tile_count, begin + task_tiles);
    static thread_local Scratch<float> acc_scratch;
    float* acc = acc_scratch.get(
        static_cast<size_t>(std::min(task_tiles, tile_count) * isa.tile * width));
    for (int64_t first = 0; first < w.cols;) {
      const int64_t stop = block_end(first, w.group, w.cols);
      const float* w0 = nullptr;
      const float* w1 = nullptr;
      block(pair, first, stop, &w0, &w1);
      for (int64_t i = begin; i < end; ++i) {
        const Tile& tile = tiles[static_cast<size_t>(i)];
        isa.product_f32(tile.mr, packed + tile.at * w.cols + first * tile.mr, w0, w1,
                        w.lanes, stop - first, first > 0,
                        acc + (i - begin) * isa.tile * width);
      }
      first = stop;
    }
    for (int64_t i = begin; i < end; ++i) {
      const Tile& tile = tiles[static_cast<size_t>(i)];
      store_tile(acc + (i - begin) * isa.tile * width, width, tile.first, tile.count,
                 pair * width, bias, y);
    }
  });
}

int64_t pairs_per_task(const PreparedLinear& w) {
  return std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(1, 2 * w.panel_bytes));
}

// body(pair) for every pair of panels, several a task.
template <class Body>
void for_pairs(const PreparedLinear& w, const Body& body) {
  const int64_t step = pairs_per_task(w);
  const int64_t pairs = w.panels / 2;
  parallel_for((pairs + step - 1) / step, [&](int64_t task) {
    const int64_t end = std::min(pairs, (task + 1) * step);
    for (int64_t pair = task * step; pair < end; ++pair) body(pair);
  });
}

// Column c of the weight lies here once groups are padded.
struct PaddedGroups {
  int64_t group, groups, padded_group, cols;
  explicit PaddedGroups(const PreparedLinear& w)
      : group(w.group),
        groups(w.groups),
        padded_group(w.bits <= 8 ? (w.group + 7) / 8 * 8 : w.group),
        cols(w.cols) {}
  int64_t count(int64_t g) const { return std::min(group, cols - g * group); }
  bool is_padded(int64_t padded_cols) const {
    return padded_cols != cols || padded_group != group;
  }
  // in [cols] to out [padded], zeros between
  template <class T>
  void spread(const T* in, int64_t padded_cols, T* out) const {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t n = count(g);
      T* to = out + g * padded_group;
      std::memcpy(to, in + g * group, static_cast<size_t>(n) * sizeof(T));
      const int64_t end = g + 1 < groups ? padded_group : padded_cols - g * padded_group;
      for (int64_t i = n; i < end; ++i) to[i] = 0;
    }
  }
};

// sums [tokens, groups] of x, where something is multiplied by them.
void group_sums(const PreparedLinear& w, const PaddedGroups& layout,
                MatrixView<const float> x, float* sums) {
  if (w.zeros.bytes.size() == 0 && w.minima.bytes.size() == 0) return;
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t g = 0; g < w.groups; ++g) {
      double sum = 0;
      const float* in = x.row(t) + g * w.group;
      for (int64_t i = 0; i < layout.count(g); ++i) sum += in[i];
      sums[t * w.groups + g] = static_cast<float>(sum);
    }
  }
}

// The digits of linear_isa.h. False where a group holds infinity, NaN, or nothing above
// 2^-90: those have none.
bool make_digits(const PreparedLinear& w, const PaddedGroups& layout, int64_t t,
                 const float* x, int64_t tokens, int32_t* packed, int32_t* starts,
                 float* powers) {
  const int bias = !w.is_signed ? 0 : w.bits == 4 ? 8 : 128;
  for (int64_t g = 0; g < w.groups; ++g) {
    const float* in = x + g * w.group;
    const float largest = w.kernel->isa->largest_of(in, layout.count(g));
    int exponent = 0;
    if (largest > 0) std::frexp(largest, &exponent);  // largest < 2^exponent
    if (!(largest <= std::numeric_limits<float>::max()) || exponent < -90) return false;
    powers[g * tokens + t] = std::ldexp(1.0f, exponent - 30);
    int32_t sums[4] = {};
    w.kernel->isa->make_digits(in, layout.count(g), std::ldexp(1.0f, 30 - exponent), tokens,
                               packed + (g * layout.padded_group * tokens + t * 4), sums);
    for (int d = 0; d < 4; ++d) starts[(g * tokens + t) * 4 + d] = -bias * sums[d];
  }
  return true;
}

// False: the activations have no digits.
bool run_digits(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
                MatrixView<float> y) {
  static thread_local Scratch<float> power_scratch, sum_scratch;
  static thread_local Scratch<int32_t> digit_scratch, start_scratch;
  const PaddedGroups layout(w);
  const size_t dwords = static_cast<size_t>(w.padded_cols * x.rows);
  int32_t* packed = digit_scratch.get(dwords);
  if (w.padded_cols != w.cols) std::memset(packed, 0, dwords * sizeof(int32_t));
  int32_t* starts = start_scratch.get(static_cast<size_t>(w.groups * x.rows * 4));
  float* powers = power_scratch.get(static_cast<size_t>(w.groups * x.rows));
  float* sums = sum_scratch.get(static_cast<size_t>(w.groups * x.rows));
  for (int64_t t = 0; t < x.rows; ++t) {
    if (!make_digits(w, layout, t, x.row(t), x.rows, packed, starts, powers)) return false;
  }
  group_sums(w, layout, x, sums);
  const PanelCodes codes = panel_codes(w);
  const auto digits = w.bits == 4 ? w.kernel->isa->digits_int4 : w.kernel->isa->digits_int8;
  for_pairs(w, [&](int64_t pair) {
    alignas(64) float acc[4 * 2 * 16];  // 4 tokens, two vectors of at most 16 lanes
    digits(codes, 2 * pair, static_cast<int>(x.rows), packed, starts, powers, sums, acc);
    store_tile(acc, 2 * w.lanes, 0, x.rows, pair * 2 * w.lanes, bias, y);
  });
  return true;
}

void run_direct_f32(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
                    MatrixView<float> y) {
  const PanelForm form = panel_form(w);
  if ((form == PanelForm::int4 || form == PanelForm::int8) &&
      x.rows <= w.kernel->isa->digit_tokens && run_digits(w, x, bias, y)) {
    return;
  }
  static thread_local Scratch<float> x_scratch, sum_scratch;
  float* padded = x_scratch.get(static_cast<size_t>(x.rows * w.padded_cols));
  float* sums = sum_scratch.get(static_cast<size_t>(x.rows * w.groups));
  const PaddedGroups layout(w);
  for (int64_t t = 0; t < x.rows; ++t) {
    layout.spread(x.row(t), w.padded_cols, padded + t * w.padded_cols);
  }
  group_sums(w, layout, x, sums);
  const PanelCodes codes = panel_codes(w);
  const auto direct = w.kernel->isa->direct_f32[static_cast<int>(form)];
  for_pairs(w, [&](int64_t pair) {
    alignas(64) float acc[4 * 2 * 16];  // 4 tokens, two vectors of at most 16 lanes
    direct(codes, 2 * pair, static_cast<int>(x.rows), padded, sums, acc);
    store_tile(acc, 2 * w.lanes, 0, x.rows, pair * 2 * w.lanes, bias, y);
  });
}

}  // namespace

void run_panels_f32(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
                    MatrixView<float> y) {
  if (x.rows <= w.kernel->isa->direct_tokens) return run_direct_f32(w, x, bias, y);
  const PanelCodes codes = panel_codes(w);
  const PanelForm form = panel_form(w);
  if (form == PanelForm::f32) {
    const float* panels = reinterpret_cast<const float*>(codes.codes);
    const int64_t panel = w.cols * w.lanes;
    return run_tiles(
        w, x, bias, y, kTaskTiles,
        [&](int64_t pair, int64_t first, int64_t, const float** w0, const float** w1) {
          *w0 = panels + 2 * pair * panel + first * w.lanes;
          *w1 = *w0 + panel;
        });
  }
  const auto decode = w.kernel->isa->decode[static_cast<int>(form)];
  run_tiles(
      w, x, bias, y, kTaskTiles,
      [&](int64_t pair, int64_t first, int64_t end, const float** w0, const float** w1) {
        static thread_local Scratch<float> scratch;
        float* out = scratch.get(static_cast<size_t>(2 * kBlockColumns * w.lanes));
        float* second = out + kBlockColumns * w.lanes;
        decode(codes, 2 * pair, first, end - first, out);
        decode(codes, 2 * pair + 1, first, end - first, second);
        *w0 = out;
        *w1 = second;
      });
}

void run_any_f32(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
                 MatrixView<float> y) {
  run_tiles(
      w, x, bias, y, kAnyTaskTiles,
      [&](int64_t pair, int64_t first, int64_t, const float** w0, const float** w1) {
        static thread_local Scratch<float> row_scratch, panel_scratch;
        const int64_t panel = w.cols * w.lanes;
        float* panels = panel_scratch.get(static_cast<size_t>(2 * panel));
        if (first == 0) {
          // The whole row at once: flat blocks and codes are cheapest read in order.
          float* row = row_scratch.get(static_cast<size_t>(w.cols));
          for (int64_t j = 0; j < 2 * w.lanes; ++j) {
            const int64_t r = pair * 2 * w.lanes + j;
            float* out = panels + j / w.lanes * panel + j % w.lanes;
            const bool exists =
                r < w.rows &&
                weight_rows(w.weight, r, MatrixView<float>(row, 1, w.cols)).ok();
            for (int64_t k = 0; k < w.cols; ++k) {
              out[k * w.lanes] = exists ? row[k] : 0.0f;
            }
          }
        }
        *w0 = panels + first * w.lanes;
        *w1 = panels + panel + first * w.lanes;
      });
}

void run_panels_bf16(const PreparedLinear& w, MatrixView<const float> x,
                     const float* bias, MatrixView<float> y) {
  const PanelIsa& isa = *w.kernel->panel;
  const LinearBf16Isa& linear = *w.kernel->bf16;
  const PanelCodes codes = panel_codes(w);
  const Bf16Form form = bf16_form(w.bits);
  const int64_t padded_group = padded_group_of(codes), pairs = w.padded_cols / 2;
  const bool few = x.rows <= linear.direct_tokens;
  const bool offsets = w.minima.bytes.size() != 0;
  // x' of token t, and its sums `stride` apart.
  const auto make_pairs = [&](int64_t t, uint32_t* out, float* sums, int64_t stride) {
    for (int64_t g = 0; g < w.groups; ++g) {
      const int64_t n = std::min(w.group, w.cols - g * w.group);
      uint32_t* to = out + g * padded_group / 2;
      linear.pair_row(x.row(t) + g * w.group, n, to);
      if (!offsets) continue;
      double sum = 0;
      for (int64_t i = 0; i < (n + 7) / 8 * 4; ++i) {
        sum += float_from_bf16(static_cast<uint16_t>(to[i]));
        sum += float_from_bf16(static_cast<uint16_t>(to[i] >> 16));
      }
      sums[g * stride] = static_cast<float>(sum);
    }
  };
  static thread_local Scratch<uint32_t> packed_scratch;
  static thread_local Scratch<float> sum_scratch;
  if (few) {
    uint32_t* packed = packed_scratch.get(static_cast<size_t>(x.rows * pairs));
    float* sums = sum_scratch.get(static_cast<size_t>(x.rows * w.groups));
    for (int64_t t = 0; t < x.rows; ++t) {
      make_pairs(t, packed + t * pairs, sums + t * w.groups, 1);
    }
    const auto direct = linear.direct[static_cast<int>(form)];
    return for_pairs(w, [&](int64_t pair) {
      alignas(64) float acc[8 * 2 * 16];  // 8 tokens, two vectors of at most 16 lanes
      direct(codes, 2 * pair, static_cast<int>(x.rows), packed, sums, acc);
      store_tile(acc, 2 * w.lanes, 0, x.rows, pair * 2 * w.lanes, bias, y);
    });
  }
  const LinearTileIsa* const by_tiles = w.kernel->tiles;
  const int64_t step = tile_step_of(w, sizeof(uint16_t));
  const int large = step > 0 ? by_tiles->tile : isa.tile;
  const std::vector<Tile>& tiles =
      tiles_of(large, step > 0 ? by_tiles->small_tile : isa.small_tile, x.rows);
  const int64_t tile_count = static_cast<int64_t>(tiles.size());
  const int64_t padded_rows = tiles.back().at + tiles.back().mr;
  uint32_t* packed = packed_scratch.get(static_cast<size_t>(padded_rows * pairs));
  float* sums = sum_scratch.get(static_cast<size_t>(padded_rows * w.groups));
  parallel_for(tile_count, [&](int64_t i) {
    const Tile& tile = tiles[static_cast<size_t>(i)];
    static thread_local Scratch<uint32_t> row_scratch;
    uint32_t* rows =
        row_scratch.get(static_cast<size_t>((step > 0 ? tile.count : 1) * pairs));
    uint32_t* out = packed + tile.at * pairs;
    for (int m = 0; m < tile.mr; ++m) {
      uint32_t* row = rows + (step > 0 && m < tile.count ? m * pairs : 0);
      float* mine = sums + tile.at * w.groups + m;
      if (m < tile.count) {
        make_pairs(tile.first + m, row, mine, tile.mr);
      } else {
        if (step == 0) std::memset(row, 0, static_cast<size_t>(pairs) * sizeof(uint32_t));
        for (int64_t g = 0; g < w.groups; ++g) mine[g * tile.mr] = 0;
      }
      for (int64_t k = 0; k < pairs && step == 0; ++k) out[k * tile.mr + m] = row[k];
    }
    if (step > 0) {
      pack_tiles(rows, pairs, tile, step / static_cast<int64_t>(sizeof(uint32_t)), out);
    }
  });
  // All panels meet some MiB of activations before the next: the last cache keeps those.
  const int64_t tile_bytes = large * pairs * 4;
  const int64_t task_tiles =
      step > 0 ? tile_chunk(tile_count, tile_bytes)
               : std::clamp<int64_t>(kChunkBytes / tile_bytes, 12, kTaskTiles);
  const int64_t chunks = (tile_count + task_tiles - 1) / task_tiles;
  const int64_t panel_pairs = w.panels / 2;
  const int64_t width = 2 * w.lanes;
  const auto decode = linear.decode[static_cast<int>(form)];
  parallel_for(panel_pairs * chunks, [&](int64_t task) {
    const int64_t pair = task % panel_pairs;
    const int64_t begin = task / panel_pairs * task_tiles;
    const int64_t end = std::min(tile_count, begin + task_tiles);
    static thread_local Scratch<float> acc_scratch;
    static thread_local Scratch<uint32_t> u_scratch;
    float* acc = acc_scratch.get(static_cast<size_t>(task_tiles * large * width));
    uint32_t* u = u_scratch.get(static_cast<size_t>(kBlockColumns / 2 * width));
    if (step > 0) by_tiles->begin(step);
    for (int64_t first = 0; first < w.padded_cols;) {
      const int64_t stop = block_end(first, padded_group, w.padded_cols);
      decode(codes, 2 * pair, first, stop, u);
      for (int64_t i = begin; i < end; ++i) {
        const Tile& tile = tiles[static_cast<size_t>(i)];
        float* sum = acc + (i - begin) * large * width;
        const uint32_t* rows = packed + tile.at * pairs;
        if (step > 0) {
          by_tiles->product_bf16(codes, 2 * pair, tile.mr, step, first, stop, rows,
                                 sums + tile.at * w.groups, u, sum);
        } else {
          (tile.mr == isa.tile ? linear.tile : linear.small_tile)(
              codes, 2 * pair, first, stop, rows + first / 2 * tile.mr,
              sums + tile.at * w.groups, u, sum);
        }
      }
      first = stop;
    }
    if (step > 0) by_tiles->end();
    for (int64_t i = begin; i < end; ++i) {
      const Tile& tile = tiles[static_cast<size_t>(i)];
      store_tile(acc + (i - begin) * large * width, width, tile.first, tile.count,
                 pair * width, bias, y);
    }
  });
}

namespace {

// Runs of a token's columns under one scale, each of whole groups of the weight.
struct Slices {
  int64_t width, count, groups;  // columns, runs, groups of the weight in each
  explicit Slices(const PreparedLinear& w)
      : width(w.input.group > 0 ? std::min(w.input.group, w.cols) : w.cols),
        count((w.cols + width - 1) / width),
        groups(count > 1 ? width / w.group : w.groups) {}
};

// What slice `s` of a pair's panels is, as panels 0 and 1 of a weight of their own.
// `column` is where it begins among the padded ones.
PanelCodes slice_of(const PreparedLinear& w, const Slices& slices, int64_t pair, int64_t s,
                    int64_t* column) {
  PanelCodes codes = panel_codes(w);
  const int64_t first = s * slices.groups;
  const int64_t groups = std::min(slices.groups, w.groups - first);
  const int64_t padded_group = padded_group_of(codes);
  *column = first * padded_group;
  codes.cols = std::min(groups * w.group, w.cols - first * w.group);
  codes.groups = groups;
  codes.padded_cols =
      (first + groups < w.groups ? groups * padded_group : w.padded_cols - *column);
  codes.codes += 2 * pair * w.panel_bytes + *column * 2 * w.lanes * w.bits / 8;
  for (PanelLevels* levels : {&codes.scales, &codes.zeros, &codes.minima}) {
    if (!levels->exist()) continue;
    levels->data += (pair * w.groups + first) * 2 * w.lanes *
                    (levels->form == LevelForm::f32 ? 4 : 2);
  }
  return codes;
}

// One row of x to codes, and its scale of each slice, `stride` apart.
void quantize_row(const PreparedLinear& w, const Slices& slices, const float* x,
                  int8_t* codes, float* scales, int64_t stride) {
  const QuantizeRowsKernel& kernel = select_quantize_rows(w.kernel->flags);
  for (int64_t s = 0; s < slices.count; ++s) {
    const int64_t first = s * slices.width, n = std::min(slices.width, w.cols - first);
    const MatrixView<const float> from(x + first, 1, n);
    const MatrixView<int8_t> to(codes + first, 1, n);
    if (w.input.scale > 0) {
      kernel.run_by(from, w.input.scale, w.input.lowest, to);
      scales[s * stride] = w.input.scale;
    } else {
      kernel.run(from, to, scales + s * stride);
    }
  }
}

}  // namespace

void run_panels_s8(const PreparedLinear& w, MatrixView<const float> x, const float* bias,
                   MatrixView<float> y) {
  const PanelIsa& isa = *w.kernel->panel;
  const LinearIsa& linear = *w.kernel->isa;
  const PanelCodes codes = panel_codes(w);
  const PaddedGroups layout(w);
  const Slices slices(w);
  const bool few = x.rows <= linear.direct_s8_tokens;
  const LinearTileIsa* const by_tiles = w.kernel->tiles;
  const int64_t step = few || slices.count > 1 ? 0 : tile_step_of(w, sizeof(int8_t));
  const int large = step > 0 ? by_tiles->tile : isa.tile;
  const std::vector<Tile>& tiles =
      few ? one_tile(x.rows)
          : tiles_of(large, step > 0 ? by_tiles->small_tile : isa.small_tile, x.rows);
  const int64_t tile_count = static_cast<int64_t>(tiles.size());
  const int64_t padded_rows = tiles.back().at + tiles.back().mr;
  const int64_t steps = w.padded_cols / 4;

  static thread_local Scratch<float> scale_scratch, one_scratch;
  static thread_local Scratch<int32_t> packed_scratch, sum_scratch;
  float* scales = scale_scratch.get(static_cast<size_t>(slices.count * x.rows));
  int32_t* packed =
      packed_scratch.get(static_cast<size_t>(padded_rows * steps * isa.dwords));
  // A tile reads a whole vector of them.
  int32_t* sums = sum_scratch.get(static_cast<size_t>(padded_rows * w.groups + w.lanes));
  parallel_for(tile_count, [&](int64_t i) {
    const Tile& tile = tiles[static_cast<size_t>(i)];
    static thread_local Scratch<int8_t> code_scratch, padded_scratch;
    int8_t* padded = padded_scratch.get(static_cast<size_t>(tile.mr * w.padded_cols));
    const bool spreads = layout.is_padded(w.padded_cols);
    int8_t* apart = spreads ? code_scratch.get(static_cast<size_t>(w.cols)) : nullptr;
    int32_t* tile_sums = sums + tile.at * w.groups;  // [groups, mr]
    for (int64_t j = 0; j < w.groups * tile.mr; ++j) tile_sums[j] = 0;
    for (int64_t m = 0; m < tile.count; ++m) {
      const int64_t t = tile.first + m;
      int8_t* row = spreads ? apart : padded + m * w.padded_cols;
      quantize_row(w, slices, x.row(t), row, scales + t, x.rows);
      if (spreads) layout.spread(row, w.padded_cols, padded + m * w.padded_cols);
      for (int64_t g = 0; g < w.groups; ++g) {
        tile_sums[g * tile.mr + m] = linear.sum_codes(row + g * w.group, layout.count(g));
      }
    }
    int32_t* out = packed + tile.at * steps * isa.dwords;
    if (step > 0) {
      pack_tiles(padded, w.padded_cols, tile, step, reinterpret_cast<int8_t*>(out));
    } else {
      pack_codes(isa, padded, w.padded_cols, tile.count, steps, tile.mr, out);
    }
  });

  const int64_t width = 2 * w.lanes;
  // Of sums that have met the scales of their slices already.
  const float* factors = scales;
  if (slices.count > 1) {
    float* ones = one_scratch.get(static_cast<size_t>(x.rows));
    std::fill(ones, ones + x.rows, 1.0f);
    factors = ones;
  }
  // acc s_x + bias, each step rounded: the definition is unfused.
  const auto store = [&](const float* acc, const Tile& tile, int64_t pair) {
    const int64_t n = pair * width, columns = std::min(width, y.cols - n);
    if (columns == width) {
      return linear.store_s8(acc, tile.count, factors + tile.first,
                             bias == nullptr ? nullptr : bias + n, y.row(tile.first) + n,
                             y.stride);
    }
    for (int64_t m = 0; m < tile.count; ++m) {
      const float scale = factors[tile.first + m];
      const float* in = acc + m * width;
      float* out = y.row(tile.first + m) + n;
      if (bias == nullptr) {
        for (int64_t j = 0; j < columns; ++j) out[j] = in[j] * scale;
      } else {
        for (int64_t j = 0; j < columns; ++j) out[j] = in[j] * scale + bias[n + j];
      }
    }
  };
  if (few) {
    const auto direct = w.bits == 4 ? linear.direct_s8_int4 : linear.direct_s8_int8;
    return for_pairs(w, [&](int64_t pair) {
      alignas(64) float acc[8 * 2 * 16];  // 8 tokens, two vectors of at most 16 lanes
      if (slices.count == 1) {
        direct(codes, 2 * pair, static_cast<int>(x.rows), packed, sums, acc);
        return store(acc, tiles[0], pair);
      }
      alignas(64) float total[8 * 2 * 16];
      for (int64_t s = 0; s < slices.count; ++s) {
        int64_t column = 0;
        const PanelCodes slice = slice_of(w, slices, pair, s, &column);
        direct(slice, 0, static_cast<int>(x.rows),
               packed + column / 4 * x.rows * isa.dwords, sums + s * slices.groups * x.rows,
               acc);
        linear.add_s8(acc, x.rows, scales + s * x.rows, s == 0, total);
      }
      store(total, tiles[0], pair);
    });
  }
  const int code_bias = !w.is_signed ? 0 : w.bits == 4 ? 8 : 128;
  const int64_t panel_u8 = w.padded_cols * w.lanes;
  const int64_t task_tiles =
      step > 0 ? tile_chunk(tile_count, large * w.padded_cols) : kTaskTiles;
  const int64_t chunks = (tile_count + task_tiles - 1) / task_tiles;
  const int64_t panel_pairs = w.panels / 2;
  parallel_for(panel_pairs * chunks, [&](int64_t task) {
    const int64_t pair = step > 0 ? task % panel_pairs : task / chunks;
    const int64_t chunk = step > 0 ? task / panel_pairs : task % chunks;
    const uint8_t* u = codes.codes + 2 * pair * w.panel_bytes;
    static thread_local Scratch<uint8_t> u_scratch;
    static thread_local Scratch<float> acc_scratch;
    if (w.bits == 4) {
      uint8_t* bytes = u_scratch.get(static_cast<size_t>(2 * panel_u8));
      linear.unpack_int4(codes, 2 * pair, bytes);
      u = bytes;
    }
    float* acc = acc_scratch.get(static_cast<size_t>(2 * large * width));
    float* total = acc + large * width;
    const int64_t begin = chunk * task_tiles;
    if (step > 0) by_tiles->begin(step);
    for (int64_t i = begin; i < std::min(tile_count, begin + task_tiles); ++i) {
      const Tile& tile = tiles[static_cast<size_t>(i)];
      const int32_t* rows = packed + tile.at * steps * isa.dwords;
      const int32_t* tile_sums = sums + tile.at * w.groups;
      if (step > 0) {
        by_tiles->product_s8(codes, 2 * pair, tile.mr, step,
                             reinterpret_cast<const int8_t*>(rows), tile_sums, u,
                             code_bias, acc);
      } else {
        const auto product = tile.mr == isa.tile ? linear.tile_s8 : linear.small_s8;
        if (slices.count == 1) product(codes, 2 * pair, rows, tile_sums, u, code_bias, acc);
        for (int64_t s = 0; s < slices.count && slices.count > 1; ++s) {
          int64_t column = 0;
          const PanelCodes slice = slice_of(w, slices, pair, s, &column);
          product(slice, 0, rows + column / 4 * tile.mr * isa.dwords,
                  tile_sums + s * slices.groups * tile.mr, u + column * width, code_bias, acc);
          linear.add_s8(acc, tile.count, scales + s * x.rows + tile.first, s == 0, total);
        }
      }
      store(slices.count > 1 ? total : acc, tile, pair);
    }
    if (step > 0) by_tiles->end();
  });
}

// repack checked what the reference checks, so these cannot fail.
void run_reference_f32(const PreparedLinear& w, MatrixView<const float> x,
                       const float* bias, MatrixView<float> y) {
  (void)linear_reference(w.weight, LinearActivation::f32, x, bias, y).ok();
}

void run_reference_bf16(const PreparedLinear& w, MatrixView<const float> x,
                        const float* bias, MatrixView<float> y) {
  (void)linear_reference(w.weight, LinearActivation::bf16, x, bias, y).ok();
}

void run_reference_s8(const PreparedLinear& w, MatrixView<const float> x,
                      const float* bias, MatrixView<float> y) {
  (void)linear_reference(w.weight, LinearActivation::s8, x, bias, y, w.input).ok();
}

}  // namespace nibble
