// A few query rows over a KV cache: every row of the cache is read once, for all the
// heads that share it, in the cheapest way that its scheme and the instruction set allow.
#include <cstring>

#include "kernels/base/parallel.h"
#include "kernels/ops/kv_attention/kv_decode.h"
#include "kernels/ops/kv_attention/kv_tiles.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/scratch.h"

namespace nibble {
namespace {

// Positions that one task takes.
constexpr int64_t kRun = 1024;
// Runs from which on a task takes all heads: four threads still have work.
constexpr int64_t kRunsEnough = 4;
// Columns that digits may sum: 2^12 * 255 * 128 < 2^31.
constexpr int64_t kMostColumns = 1 << 12;

// How keys, or values, are read.
enum class Reading : uint8_t {
  floats,  // decoded, then multiplied
  codes,   // multiplied as floats as they are decoded
  digits,  // multiplied as integers by the digits of the other operand
};

struct Side {
  Reading reading = Reading::floats;
  KvCode code = KvCode::other;
  KvForm form = KvForm::plain;
  // Columns of the output: of values read by digits those of whole panels.
  int64_t padded = 0;

  bool halves() const { return bits_of(code) == 4; }
};

Side side_of(const KvAttentionKernel& kernel, const KvRows& rows, int64_t dim,
             bool keys) {
  Side side;
  side.padded = dim;
  for (int64_t column = 0; column < rows.width(); column += dim) {
    if (!rows.has_codes(column, dim)) return side;
  }
  const KvCodes codes = rows.codes(0, 0);
  side.code = codes.code;
  side.form = codes.form;
  const int64_t together = rows.positions();
  const bool is_integer = side.code <= KvCode::u4;
  const int64_t per_step = side.halves() ? 8 : 4;
  // Vectors of 64 bytes must not reach into another group of a row's bytes.
  const int64_t head_bytes = dim * bits_of(side.code) / 8;
  const bool whole =
      codes.row_bytes != 64 || head_bytes % 64 == 0 || 64 % head_bytes == 0;
  // Scales that positions share must be those of all that are scored together.
  const bool scales = together == 1 || (keys && together % KvDigitsIsa::kPositions == 0);
  if (kernel.decode->digits != nullptr && is_integer && scales && whole &&
      dim % per_step == 0 && dim <= kMostColumns) {
    side.reading = Reading::digits;
    const int64_t columns = side.halves() ? 128 : 64;  // of 64 bytes
    if (!keys) side.padded = (dim + columns - 1) / columns * columns;
  } else if (bits_of(side.code) >= 8 && together == 1 &&
             (side.form == KvForm::scaled || side.form == KvForm::plain) &&
             dim % kernel.decode->lanes == 0) {
    side.reading = Reading::codes;
  }
  return side;
}

// row(r) points to the numbers of row r, which make_digits may change.
template <class Row>
void make_digits(const KvAttentionKernel& kernel, int64_t rows, int64_t n, int bias,
                 const float* scales, const Row& row, const KvDigits& to) {
  for (int64_t r = 0; r < rows; ++r) {
    int32_t sums[kKvDigits] = {};
    to.powers[r] = kernel.decode->digits->make_digits(
        row(r), scales, n, to.dwords + r * to.steps * kKvDigits, sums);
    for (int d = 0; d < kKvDigits; ++d) to.starts[r * kKvDigits + d] = -bias * sums[d];
  }
}

// One call: operands, and what all its tasks share.
struct Few {
  const KvAttentionKernel& kernel;
  const AttentionShape& shape;
  const KvRows& k;
  const KvRows& v;
  Side keys, values;
  int64_t rows;                      // of queries that share a key head
  const float* queries = nullptr;    // [kv_heads, rows, head_dim], scaled
  const float* ordered = nullptr;    // the same as steps of digits take them
  const float* sums = nullptr;       // [kv_heads, rows], of each query
  const KvDigits* digits = nullptr;  // [kv_heads], of the queries
  int64_t stride() const { return kKvTile + kernel.panel->lanes; }
};

// A task's working memory.
struct Workspace {
  float* floats;     // [kKvTile, head_dim], decoded
  float* levels;     // [2, max(kKvTile, head_dim)], scales and offsets
  float* scores;     // [rows, stride]
  float* factors;    // [rows]
  float* shrinks;    // [rows]
  float* constants;  // [rows], what offsets add
  float* added;      // [rows, head_dim]
  int32_t* sums;     // of KvDigitsIsa::scores
  KvDigits digits;   // of queries under shared scales, or of weights
};

// Positions [first, first + count) of one key head.
struct Tile {
  int64_t first, count, head;
  int64_t next, next_head;  // the tile after it; next < 0: none
};

// The codes of a tile's keys, while which its values are fetched; of its values, while
// which the next tile's keys are.
KvCodes keys_of(const Few& few, const Tile& tile) {
  const int64_t dim = few.shape.head_dim;
  KvCodes codes = few.k.codes(tile.first, tile.head * dim);
  if (few.values.reading != Reading::floats) {
    codes.next = few.v.codes(tile.first, tile.head * dim).at(0);
  }
  return codes;
}
KvCodes values_of(const Few& few, const Tile& tile) {
  const int64_t dim = few.shape.head_dim;
  KvCodes codes = few.v.codes(tile.first, tile.head * dim);
  if (few.keys.reading != Reading::floats && tile.next >= 0) {
    codes.next = few.k.codes(tile.next, tile.next_head * dim).at(0);
  }
  return codes;
}

float dot(const AttentionIsa& isa, const float* a, const float* b, int64_t n) {
  float sum;
  isa.scores(a, b, n, n, 1, &sum);
  return sum;
}

// offset_part[j] = -s[j] z[j] of zero points, m[j] of minima.
void to_offset_part(KvForm form, const float* s, float* o, int64_t n) {
  if (form != KvForm::zero_point) return;
  for (int64_t j = 0; j < n; ++j) o[j] = -s[j] * o[j];
}
bool has_offset(KvForm form) {
  return form == KvForm::zero_point || form == KvForm::minimum;
}

void scores_by_digits(const Few& few, const Tile& tile, const Workspace& work) {
  const KvDigitsIsa& isa = *few.kernel.decode->digits;
  const int64_t dim = few.shape.head_dim, together = few.k.positions();
  const bool offset = has_offset(few.keys.form);
  float* s = work.levels;
  float* o = s + std::max(kKvTile, dim);
  KvCodes codes = keys_of(few, tile);
  if (together == 1) {
    few.k.row_levels(*few.kernel.decode, tile.first, tile.count, tile.head * dim, s, o);
    if (offset) to_offset_part(few.keys.form, s, o, tile.count);
    const float* sums = few.sums + tile.head * few.rows;
    std::fill_n(work.constants, few.rows, 0.0f);
    return isa.scores(codes, dim, tile.count, few.digits[tile.head], few.rows, s,
                      offset ? o : nullptr, offset ? sums : work.constants, work.sums,
                      work.scores, few.stride());
  }
  const float* queries = few.queries + tile.head * few.rows * dim;
  for (int64_t b = 0; b < tile.count;) {
    // Scales of columns go into the query.
    const int64_t block = (tile.first + b) / together;
    const int64_t count = std::min(tile.count, (block + 1) * together - tile.first) - b;
    few.k.block_levels(few.kernel.decode, block, tile.head * dim, dim, s, o);
    if (offset) to_offset_part(few.keys.form, s, o, dim);
    for (int64_t r = 0; r < few.rows; ++r) {
      work.constants[r] = offset ? dot(*few.kernel.isa, queries + r * dim, o, dim) : 0;
    }
    float* ordered = o;
    to_step_order(few.keys.halves(), s, dim, ordered);
    KvDigits digits = work.digits;
    digits.steps = dim / 4;
    make_digits(
        few.kernel, few.rows, dim, kv_bias(codes.code), ordered,
        [&](int64_t r) {
          float* query = work.added;
          std::memcpy(query, few.ordered + (tile.head * few.rows + r) * dim,
                      static_cast<size_t>(dim) * sizeof(float));
          return query;
        },
        digits);
    isa.scores(codes, dim, count, digits, few.rows, nullptr, nullptr, work.constants,
               work.sums, work.scores + b, few.stride());
    codes.codes += count * codes.row_bytes;
    if (codes.next != nullptr) codes.next += count * dim * bits_of(codes.code) / 8;
    b += count;
  }
}

void scores_of(const Few& few, const Tile& tile, const Workspace& work) {
  const KvDecodeIsa& isa = *few.kernel.decode;
  const int64_t dim = few.shape.head_dim;
  const float* queries = few.queries + tile.head * few.rows * dim;
  if (few.keys.reading == Reading::codes) {
    float* scales = few.k.is_scaled() ? work.levels : nullptr;
    if (scales != nullptr) {
      few.k.row_levels(isa, tile.first, tile.count, tile.head * dim, scales, nullptr);
    }
    KvCodes codes = keys_of(few, tile);
    for (int64_t r = 0; r < few.rows; r += isa.direct_heads) {
      const int64_t heads = std::min<int64_t>(isa.direct_heads, few.rows - r);
      isa.scores(codes, queries + r * dim, static_cast<int>(heads), dim, tile.count,
                 scales, work.scores + r * few.stride(), few.stride());
      codes.next = nullptr;
    }
    return;
  }
  // A block of positions that is not complete is in floats.
  Tile coded = tile;
  coded.count = 0;
  if (few.keys.reading == Reading::digits) {
    coded.count = std::clamp<int64_t>(few.k.complete() - tile.first, 0, tile.count);
    if (coded.count > 0) scores_by_digits(few, coded, work);
  }
  const int64_t left = tile.count - coded.count;
  if (left == 0) return;
  few.k.read(&isa, tile.first + coded.count, tile.head * dim, {work.floats, left, dim});
  for (int64_t r = 0; r < few.rows; ++r) {
    few.kernel.isa->scores(queries + r * dim, work.floats, dim, dim, left,
                           work.scores + r * few.stride() + coded.count);
  }
}

void weigh_by_digits(const Few& few, const Tile& tile, const Workspace& work,
                     float* outputs, int64_t size) {
  const int64_t dim = few.shape.head_dim;
  const KvForm form = few.values.form;
  float* s = work.levels;
  float* o = s + std::max(kKvTile, dim);
  few.v.row_levels(*few.kernel.decode, tile.first, tile.count, tile.head * dim, s, o);
  if (has_offset(form)) to_offset_part(form, s, o, tile.count);
  for (int64_t r = 0; r < few.rows; ++r) {
    const float* a = work.scores + r * few.stride();
    work.constants[r] = has_offset(form) ? dot(*few.kernel.isa, a, o, tile.count) : 0;
  }
  KvDigits digits = work.digits;
  digits.steps = (tile.count + 3) / 4;
  make_digits(
      few.kernel, few.rows, tile.count, kv_bias(few.values.code), s,
      [&](int64_t r) { return work.scores + r * few.stride(); }, digits);
  few.kernel.decode->digits->weighted_sum(values_of(few, tile), dim, tile.count, digits,
                                          few.rows, work.shrinks, work.factors,
                                          work.constants, outputs, size);
}

// outputs[r] = outputs[r] shrinks[r] + factors[r] sum_j a[r, j] v[j]; changes a.
void weigh(const Few& few, const Tile& tile, const Workspace& work, float* outputs,
           int64_t size) {
  if (few.values.reading == Reading::digits) {
    return weigh_by_digits(few, tile, work, outputs, size);
  }
  const KvDecodeIsa& isa = *few.kernel.decode;
  const int64_t dim = few.shape.head_dim;
  if (few.values.reading == Reading::floats) {
    few.v.read(&isa, tile.first, tile.head * dim, {work.floats, tile.count, dim});
    for (int64_t r = 0; r < few.rows; ++r) {
      few.kernel.isa->weighted_sum(work.scores + r * few.stride(), work.floats, dim, dim,
                                   tile.count, work.factors[r], work.added + r * dim);
    }
  } else {
    if (few.v.is_scaled()) {
      float* s = work.levels;
      few.v.row_levels(isa, tile.first, tile.count, tile.head * dim, s, nullptr);
      for (int64_t r = 0; r < few.rows; ++r) {
        float* a = work.scores + r * few.stride();
        for (int64_t j = 0; j < tile.count; ++j) a[j] *= s[j];
      }
    }
    KvCodes codes = values_of(few, tile);
    for (int64_t r = 0; r < few.rows; r += isa.direct_heads) {
      const int64_t heads = std::min<int64_t>(isa.direct_heads, few.rows - r);
      isa.weighted_sum(codes, work.scores + r * few.stride(), few.stride(),
                       static_cast<int>(heads), dim, tile.count, work.factors + r,
                       work.added + r * dim);
      codes.next = nullptr;
    }
  }
  for (int64_t r = 0; r < few.rows; ++r) {
    float* out = outputs + r * size;
    const float* add = work.added + r * dim;
    for (int64_t d = 0; d < dim; ++d) out[d] = out[d] * work.shrinks[r] + add[d];
  }
}

Workspace workspace_of(const Few& few) {
  const int64_t dim = few.shape.head_dim, lanes = few.kernel.panel->lanes;
  const int64_t level = std::max(kKvTile, dim);
  const int64_t products = few.rows * kKvDigits;
  const int64_t steps = (level + 3) / 4;
  static thread_local Scratch<float> float_scratch;
  static thread_local Scratch<int32_t> digit_scratch;
  Workspace work;
  // A vector of levels is read from where positions end.
  work.floats = float_scratch.get(static_cast<size_t>(
      kKvTile * dim + 2 * level + lanes + few.rows * (few.stride() + 4 + dim)));
  work.levels = work.floats + kKvTile * dim;
  work.scores = work.levels + 2 * level + lanes;
  work.factors = work.scores + few.rows * few.stride();
  work.shrinks = work.factors + few.rows;
  work.constants = work.shrinks + few.rows;
  work.digits.powers = work.constants + few.rows;
  work.added = work.digits.powers + few.rows;
  std::fill_n(work.levels, 2 * level + lanes, 0.0f);
  work.digits.dwords = digit_scratch.get(
      static_cast<size_t>(products * (steps + 1 + KvDigitsIsa::kPositions)));
  work.digits.starts = work.digits.dwords + products * steps;
  work.sums = work.digits.starts + products;
  return work;
}

}  // namespace

void attend_few(const KvAttentionKernel& kernel, const AttentionShape& shape,
                MatrixView<const float> q, const KvRows& k, const KvRows& v,
                MatrixView<float> y) {
  const int64_t dim = shape.head_dim;
  const int64_t length = k.length();
  const int64_t first = length - q.rows;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t runs = (length + kRun - 1) / kRun;
  // Where runs alone are work enough, a task takes every head of its run, and so reads
  // memory as it lies.
  const int64_t together = runs >= kRunsEnough ? shape.kv_heads : 1;
  const int64_t parts_of_run = shape.kv_heads / together;
  Few few = {.kernel = kernel,
             .shape = shape,
             .k = k,
             .v = v,
             .keys = side_of(kernel, k, dim, true),
             .values = side_of(kernel, v, dim, false),
             .rows = group * q.rows};
  const int64_t rows = few.rows, all = shape.kv_heads * rows;

  // Of each run, head and row: the output so far, the maximum, the sum.
  const int64_t padded = few.values.padded, size = padded + 2;
  static thread_local Scratch<float> shared;
  static thread_local Scratch<int32_t> shared_digits;
  static thread_local Scratch<KvDigits> shared_heads;
  float* parts = shared.get(static_cast<size_t>(runs * all * size + all * (2 * dim + 2)));
  float* queries = parts + runs * all * size;
  float* sums = queries + all * dim;
  float* powers = sums + all;
  float* ordered = powers + all;
  KvDigits* digits = shared_heads.get(static_cast<size_t>(shape.kv_heads));
  few.queries = queries;
  few.sums = sums;
  few.digits = digits;
  few.ordered = ordered;
  for (int64_t i = 0; i < all; ++i) {
    const int64_t head = i / rows, r = i % rows;
    const float* query = q.row(r % q.rows) + (head * group + r / q.rows) * dim;
    for (int64_t d = 0; d < dim; ++d) queries[i * dim + d] = query[d] * shape.scale;
    double sum = 0;  // which offsets of positions are multiplied by
    for (int64_t d = 0; has_offset(few.keys.form) && d < dim; ++d) {
      sum += queries[i * dim + d];
    }
    sums[i] = static_cast<float>(sum);
    to_step_order(few.keys.halves(), queries + i * dim, dim, ordered + i * dim);
  }
  if (few.keys.reading == Reading::digits && k.positions() == 1) {
    const int64_t products = rows * kKvDigits, steps = dim / 4;
    int32_t* at =
        shared_digits.get(static_cast<size_t>(shape.kv_heads * products * (steps + 1)));
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      digits[head] = {at, at + products * steps, powers + head * rows, steps};
      at += products * (steps + 1);
      make_digits(
          kernel, rows, dim, kv_bias(few.keys.code), nullptr,
          [&](int64_t r) { return ordered + (head * rows + r) * dim; }, digits[head]);
    }
  }
  const auto one = [&, parts](int64_t i) {
    const int64_t begin = i % parts_of_run * together;
    const int64_t run = i / parts_of_run * kRun;
    const Workspace work = workspace_of(few);
    float* mine = parts + (i / parts_of_run * shape.kv_heads + begin) * rows * size;
    for (int64_t r = 0; r < together * rows; ++r) {
      std::fill_n(mine + r * size, padded, 0.0f);
      mine[r * size + padded] = -INFINITY;
      mine[r * size + padded + 1] = 0;
    }
    for (int64_t at = run; at < std::min(length, run + kRun); at += kKvTile) {
      const int64_t count = std::min({kKvTile, length - at, run + kRun - at});
      if (seen_of(shape, first, at, count).begin >= count) continue;
      for (int64_t head = begin; head < begin + together; ++head) {
        float* outputs = mine + (head - begin) * rows * size;
        Tile tile = {at, count, head, at, head + 1};
        if (head + 1 == begin + together) {
          tile.next = at + kKvTile < std::min(length, run + kRun) ? at + kKvTile : -1;
          tile.next_head = begin;
        }
        scores_of(few, tile, work);
        for (int64_t r = 0; r < rows; ++r) {
          float* a = work.scores + r * few.stride();
          const Seen seen = seen_of(shape, first + r % q.rows, at, count);
          work.factors[r] = 0;
          work.shrinks[r] = 1;
          if (seen.begin >= seen.end) {
            std::fill_n(a, count, 0.0f);
            continue;
          }
          float* out = outputs + r * size + padded;
          Carried carried = {out[0], out[1]};
          work.shrinks[r] = carry(*kernel.isa, kernel.panel->lanes, seen, count, a,
                                  carried, &work.factors[r]);
          out[0] = carried.maximum;
          out[1] = carried.sum;
        }
        weigh(few, tile, work, outputs, size);
      }
    }
  };
  const int64_t tasks = runs * parts_of_run;
  if (rows * shape.kv_heads * length * dim < (1 << 15)) {
    for (int64_t i = 0; i < tasks; ++i) one(i);
  } else {
    parallel_for(tasks, one);
  }
  const bool turned = few.values.reading == Reading::digits;
  static thread_local Scratch<int64_t> shared_columns;
  int64_t* columns = shared_columns.get(static_cast<size_t>(padded));
  for (int64_t d = 0; d < padded; ++d) {
    columns[d] = turned ? value_column(few.values.halves(), d) : d;
  }
  for (int64_t i = 0; i < all; ++i) {
    const int64_t head = i / rows, r = i % rows;
    const auto part = [&](int64_t run) { return parts + (run * all + i) * size; };
    float maximum = -INFINITY, sum = 0;
    for (int64_t run = 0; run < runs; ++run) {
      maximum = std::max(maximum, part(run)[padded]);
    }
    float* total = part(0);
    for (int64_t run = 0; run < runs; ++run) {
      const float* from = part(run);
      const float factor = std::exp(from[padded] - maximum);
      sum += from[padded + 1] * factor;
      if (run == 0) {
        for (int64_t d = 0; d < padded; ++d) total[d] *= factor;
      } else {
        for (int64_t d = 0; d < padded; ++d) total[d] += from[d] * factor;
      }
    }
    for (int64_t d = 0; d < padded; ++d) total[d] /= sum;
    float* out = y.row(r % q.rows) + (head * group + r / q.rows) * dim;
    for (int64_t d = 0; d < padded; ++d) {
      if (columns[d] < dim) out[columns[d]] = total[d];
    }
  }
}

}  // namespace nibble
