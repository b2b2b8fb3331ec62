// The cases of attention, convolutions, and what goes through a matrix once.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/base/huge_pages.h"
#include "kernels/base/splitmix64.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/conv2d/conv2d.h"
#include "kernels/ops/kv_attention/kv_attention.h"
#include "kernels/ops/quantize_rows/quantize_rows.h"
#include "kernels/ops/rms_norm/rms_norm.h"
#include "kernels/ops/rope/rope.h"
#include "kernels/ops/silu_mul/silu_mul.h"
#include "kernels/packing/packed_tensor.h"
#include "recipes/eval/timed_case.h"

namespace nibble {
namespace {

using Cases = Result<std::vector<TimedCase>>;
using Floats = std::vector<float, HugePages<float>>;

constexpr uint64_t kSeed = 20262;  // any: the values do not change the work
constexpr int64_t kHeadDim = 128;
constexpr int64_t kTaskRows = 64;  // of a matrix: what one thread takes at a time

Floats random_floats(int64_t n, uint64_t seed) {
  SplitMix64 random(seed);
  Floats values(static_cast<size_t>(n));
  for (float& value : values) value = static_cast<float>(random.uniform() - 0.5);
  return values;
}

// `count` matrices of random values, each the one before turned by a row's part.
std::vector<Floats> matrices(int64_t count, int64_t rows, int64_t cols, uint64_t seed) {
  std::vector<Floats> all = {random_floats(rows * cols, seed)};
  all.resize(static_cast<size_t>(count));
  parallel_for(count - 1, [&](int64_t i) {
    Floats& values = all[static_cast<size_t>(i + 1)];
    values = all[0];
    std::rotate(values.begin(), values.begin() + (i * 61 + 61) % (rows * cols),
                values.end());
  });
  return all;
}

void use_all_threads(const Bench& bench) {
  use_threads(*std::max_element(bench.threads.begin(), bench.threads.end()));
}

// --- attention

struct KvCase {
  const char* kv;
  int64_t heads, kv_heads, tokens;  // tokens: queries, the last of the context
};
constexpr KvCase kKvCases[] = {{"f32", 32, 8, 1},
                               {"bf16", 32, 8, 1},
                               {"f16", 32, 8, 1},
                               {"fp8", 32, 8, 1},
                               {"int8", 32, 8, 1},
                               {"int8", 8, 8, 1},
                               {"int8n/b32x1@f16,int8", 32, 8, 1},
                               {"int4", 32, 8, 1},
                               {"int4", 8, 8, 1},
                               {"f32", 32, 8, 512},
                               {"f16", 32, 8, 512},
                               {"int8", 32, 8, 512},
                               {"int4", 32, 8, 512}};

struct Caches {
  std::vector<std::pair<KvRows, KvRows>> all;  // keys and values
  Floats q, y;
  size_t next = 0;
};

// Rows of the given scheme from random values.
Result<KvRows> cache_of(const QuantScheme& scheme, int64_t length, int64_t width,
                        uint64_t seed) {
  constexpr int64_t kAppended = 256;
  NIBBLE_ASSIGN_OR_RETURN(KvRows cache, KvRows::create(scheme, length, width));
  SplitMix64 random(seed);
  std::vector<float> rows(static_cast<size_t>(kAppended * width));
  for (int64_t first = 0; first < length; first += kAppended) {
    for (float& value : rows) value = static_cast<float>(random.uniform() - 0.5);
    const int64_t count = std::min(kAppended, length - first);
    NIBBLE_RETURN_IF_ERROR(cache.append({rows.data(), count, width}));
  }
  return cache;
}

// Do a few queries meet these codes as int8 digits (kv_attention/kv_few.cpp)?
bool by_digits(const KvAttentionKernel& kernel, const QuantScheme& scheme) {
  return kernel.decode != nullptr && kernel.decode->digits != nullptr &&
         element_info(scheme.code).kind == ElementKind::integer;
}

Cases attention_cases(const Bench& bench, const KvCase& c, KernelSpeed speed) {
  const int64_t length = std::max(bench.options.context, c.tokens);
  const int64_t width = c.kv_heads * kHeadDim, q_width = c.heads * kHeadDim;
  NIBBLE_ASSIGN_OR_RETURN(const KvScheme scheme,
                          parse_kv_scheme(c.kv, c.kv_heads, kHeadDim));
  const int64_t most = this_machine().available / 3;
  const int64_t needed = KvRows::bytes_for(scheme.keys, length, width) +
                         KvRows::bytes_for(scheme.values, length, width);
  if (most > 0 && needed > most) {
    return error(StatusCode::resource_exhausted, "[bench] --context: a cache of at most ",
                 most,
                 " bytes, a third of the memory that is available, is required; found ",
                 needed, " of ", length, " positions; give less");
  }
  const AttentionShape shape{
      .heads = c.heads, .kv_heads = c.kv_heads, .head_dim = kHeadDim, .scale = 0.088f};
  const bool decode = c.tokens == 1;
  const auto caches = std::make_shared<Caches>();
  // A few of different values; the others of a working set are theirs in other pairs.
  constexpr uint64_t kDifferent = 4;
  std::vector<KvRows> keys, values;
  int64_t count = 1;
  for (uint64_t i = 0; i < kDifferent && static_cast<int64_t>(i) < count; ++i) {
    NIBBLE_ASSIGN_OR_RETURN(KvRows k,
                            cache_of(scheme.keys, length, width, kSeed + 2 * i));
    NIBBLE_ASSIGN_OR_RETURN(KvRows v,
                            cache_of(scheme.values, length, width, kSeed + 2 * i + 1));
    speed.weight_bytes = static_cast<double>(k.bytes() + v.bytes());
    if (decode) count = bench.operands(speed.weight_bytes);
    keys.push_back(std::move(k));
    values.push_back(std::move(v));
  }
  use_all_threads(bench);
  caches->all.reserve(static_cast<size_t>(count));
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    caches->all.emplace_back(keys[i % keys.size()],
                             values[i / keys.size() % values.size()]);
  }
  caches->q = random_floats(c.tokens * q_width, kSeed);
  caches->y.resize(caches->q.size());
  const MatrixView<const float> q(caches->q.data(), c.tokens, q_width);
  const MatrixView<float> y(caches->y.data(), c.tokens, q_width);

  // As the executor does: a cache in f32 is read where it lies.
  const bool plain = scheme.is_f32();
  const AttentionKernel& by_floats = select_attention();
  const KvAttentionKernel& by_codes = select_kv_attention();
  const PanelIsa* const panel = plain ? by_floats.panel : by_codes.panel;
  const uint32_t flags = plain ? by_floats.flags : by_codes.flags;
  speed.kernel = plain ? by_floats.name : by_codes.name;
  speed.weights = count;
  TimedCase timed{.speed = std::move(speed), .call = {}, .by_memory = decode};
  if (plain) {
    timed.call = [caches, shape, q, y, length, width, kernel = &by_floats] {
      const auto& [k, v] = caches->all[caches->next];
      attention(*kernel, shape, q, {k.floats(), length, width},
                {v.floats(), length, width}, y);
      caches->next = (caches->next + 1) % caches->all.size();
    };
  } else {
    timed.call = [caches, shape, q, y, kernel = &by_codes] {
      const auto& [k, v] = caches->all[caches->next];
      kv_attention(*kernel, shape, q, k, v, y);
      caches->next = (caches->next + 1) % caches->all.size();
    };
  }
  // A product and a sum with keys, the same with values, of the positions that each query
  // sees.
  const double seen =
      static_cast<double>(c.tokens) *
      (static_cast<double>(length) - static_cast<double>(c.tokens - 1) / 2);
  timed.operations = 4.0 * seen * static_cast<double>(q_width);
  const bool digits = by_digits(by_codes, scheme.keys);
  if (decode && digits != by_digits(by_codes, scheme.values)) {
    return std::vector<TimedCase>{std::move(timed)};  // two instructions
  }
  if (panel != nullptr && decode && digits) {
    timed.peak = best_peak(Numbers::int8, flags);
    timed.peak_operations = kKvDigits * timed.operations;
  } else if (panel != nullptr) {
    timed.peak = best_peak(Numbers::f32, flags);
    timed.peak_operations = timed.operations;
  }
  return std::vector<TimedCase>{std::move(timed)};
}

// --- conv

struct ConvCase {
  const char* name;
  int64_t channels, size, outputs, kernel, stride, groups;
};
// Layers of ResNet-20 (CIFAR), ResNet-50 and MobileNetV2.
constexpr ConvCase kConvCases[] = {{"3x3", 16, 32, 16, 3, 1, 1},
                                   {"3x3", 32, 16, 32, 3, 1, 1},
                                   {"3x3", 64, 8, 64, 3, 1, 1},
                                   {"3x3", 64, 56, 64, 3, 1, 1},
                                   {"3x3", 128, 28, 128, 3, 1, 1},
                                   {"3x3", 256, 14, 256, 3, 1, 1},
                                   {"3x3", 512, 7, 512, 3, 1, 1},
                                   {"3x3 stride 2", 128, 56, 128, 3, 2, 1},
                                   {"3x3 stride 2", 256, 28, 256, 3, 2, 1},
                                   {"1x1", 64, 56, 256, 1, 1, 1},
                                   {"1x1", 256, 56, 64, 1, 1, 1},
                                   {"1x1", 1024, 14, 256, 1, 1, 1},
                                   {"1x1 stride 2", 256, 56, 512, 1, 2, 1},
                                   {"depthwise 3x3", 144, 56, 144, 3, 1, 144},
                                   {"depthwise 3x3", 384, 14, 384, 3, 1, 384},
                                   {"depthwise 3x3 stride 2", 96, 112, 96, 3, 2, 96}};

std::string text_of(const ConvCase& c) {
  return cat(c.name, " ", c.channels, "x", c.size, "x", c.size,
             c.groups == 1 && c.outputs != c.channels ? cat(" to ", c.outputs) : "");
}

struct ConvWork {
  PreparedConv2dS8 conv;
  std::vector<uint8_t> codes, y;
  std::vector<int32_t> bias;
  std::vector<float> multiplier;
};

Cases conv_cases(const ConvCase& c, KernelSpeed speed) {
  const Conv2dShape shape{.channels = c.channels,
                          .height = c.size,
                          .width = c.size,
                          .outputs = c.outputs,
                          .kernel_h = c.kernel,
                          .kernel_w = c.kernel,
                          .stride_h = c.stride,
                          .stride_w = c.stride,
                          .pad_h = c.kernel / 2,
                          .pad_w = c.kernel / 2,
                          .groups = c.groups};
  SplitMix64 random(kSeed);
  const auto work = std::make_shared<ConvWork>();
  std::vector<int8_t> weight(static_cast<size_t>(c.outputs * shape.patch()));
  for (int8_t& code : weight) {
    code = static_cast<int8_t>(static_cast<int>(random.below(255)) - 127);
  }
  NIBBLE_ASSIGN_OR_RETURN(work->conv, prepare_conv2d_s8(shape, weight, true));
  work->codes.resize(static_cast<size_t>(c.channels * c.size * c.size));
  for (uint8_t& code : work->codes) code = static_cast<uint8_t>(random.below(256));
  const int64_t pixels = shape.out_height() * shape.out_width();
  work->y.resize(static_cast<size_t>(c.outputs * pixels));
  work->bias.assign(static_cast<size_t>(c.outputs), 5);
  work->multiplier.assign(static_cast<size_t>(c.outputs), 0.0001f);
  const Conv2dKernel& kernel = *work->conv.kernel;
  speed.kernel = conv2d_s8_kernel_name(work->conv);
  speed.weight_bytes = static_cast<double>(weight.size() + work->codes.size());
  speed.weights = 1;
  TimedCase timed{.speed = std::move(speed), .call = [work] {
                    run_conv2d_s8(work->conv, work->codes.data(),
                                  {.bias = work->bias.data(),
                                   .multiplier = work->multiplier.data(),
                                   .scale = 0.03f,
                                   .lowest = 0,
                                   .highest = 255},
                                  work->y.data());
                  }};
  timed.operations =
      2.0 * static_cast<double>(c.outputs * shape.patch()) * static_cast<double>(pixels);
  if (kernel.panel != nullptr) {
    timed.peak = best_peak(Numbers::int8, kernel.flags);
    timed.peak_operations = timed.operations;
  }
  return std::vector<TimedCase>{std::move(timed)};
}

// --- memory

// What goes through a matrix of --shape once: reads and writes so many bytes.
struct Moved {
  double read = 0, written = 0;
};

TimedCase moving(KernelSpeed speed, const Moved& bytes, int64_t count,
                 std::function<void()> call) {
  speed.weight_bytes = bytes.read;
  speed.written_bytes = bytes.written;
  speed.weights = count;
  return {.speed = std::move(speed), .call = std::move(call), .by_memory = true};
}

// body(first row, rows) over runs of rows, in parallel.
template <class Body>
void for_rows(int64_t rows, const Body& body) {
  parallel_for((rows + kTaskRows - 1) / kTaskRows, [&](int64_t i) {
    body(i * kTaskRows, std::min(kTaskRows, rows - i * kTaskRows));
  });
}

// Matrices in, matrices out, one after the other.
struct Streams {
  std::vector<Floats> x, up, y;
  std::vector<std::vector<int8_t, HugePages<int8_t>>> codes;
  std::vector<float> scales, weight;
  std::vector<CodedMatrix> coded;
  std::vector<PackedTensor> packed;
  size_t next = 0;
  size_t turn(size_t count) { return std::exchange(next, (next + 1) % count); }
};

Cases quantize_rows_cases(const Bench& bench, const QuantScheme&, KernelSpeed speed) {
  const int64_t rows = bench.options.rows, cols = bench.options.cols;
  const double values = static_cast<double>(rows * cols);
  const int64_t count = bench.operands(5 * values);
  const auto streams = std::make_shared<Streams>();
  streams->x = matrices(count, rows, cols, kSeed);
  streams->codes.resize(static_cast<size_t>(count));
  for (auto& codes : streams->codes) codes.resize(static_cast<size_t>(rows * cols));
  streams->scales.resize(static_cast<size_t>(rows));
  const QuantizeRowsKernel& kernel = select_quantize_rows();
  speed.kernel = kernel.name;
  return std::vector<TimedCase>{
      moving(std::move(speed), {4 * values, values}, count,
             [streams, rows, cols, count, run = kernel.run] {
               const size_t at = streams->turn(static_cast<size_t>(count));
               for_rows(rows, [&](int64_t first, int64_t n) {
                 run({streams->x[at].data() + first * cols, n, cols},
                     {streams->codes[at].data() + first * cols, n, cols},
                     streams->scales.data() + first);
               });
             })};
}

// Quantized under scales of its own.
Result<CodedMatrix> coded(const Floats& x, const QuantScheme& scheme, int64_t rows,
                          int64_t cols) {
  const MatrixView<const float> view(x.data(), rows, cols);
  NIBBLE_ASSIGN_OR_RETURN(CodedMatrix q, choose_scales(view, scheme, ScaleRule{}));
  NIBBLE_RETURN_IF_ERROR(quantize(view, q));
  return q;
}

// The codes of q turned by `by`.
CodedMatrix turned(const CodedMatrix& q, int64_t by) {
  CodedMatrix other = q;
  std::rotate(other.codes.begin(),
              other.codes.begin() + by % static_cast<int64_t>(other.codes.size()),
              other.codes.end());
  return other;
}

Cases quantize_cases(const Bench& bench, const QuantScheme& scheme, KernelSpeed speed) {
  const int64_t rows = bench.options.rows, cols = bench.options.cols;
  const double values = static_cast<double>(rows * cols);
  const int64_t count = bench.operands(5 * values);
  const auto streams = std::make_shared<Streams>();
  streams->x = matrices(count, rows, cols, kSeed);
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, coded(streams->x[0], scheme, rows, cols));
  streams->coded.assign(static_cast<size_t>(count), q);
  speed.kernel = "quantize";
  return std::vector<TimedCase>{
      moving(std::move(speed), {4 * values, values}, count, [streams, rows, cols, count] {
        const size_t at = streams->turn(static_cast<size_t>(count));
        const MatrixView<const float> x(streams->x[at].data(), rows, cols);
        (void)quantize(x, streams->coded[at]);  // coded() saw that it can be
      })};
}

Cases pack_cases(const Bench& bench, const QuantScheme& scheme, KernelSpeed speed) {
  const int64_t rows = bench.options.rows, cols = bench.options.cols;
  const double values = static_cast<double>(rows * cols);
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q,
                          coded(random_floats(rows * cols, kSeed), scheme, rows, cols));
  NIBBLE_ASSIGN_OR_RETURN(const PackedTensor packed, pack(q, {rows, cols}));
  const double stored = static_cast<double>(packed.bytes());
  const int64_t count = bench.operands(values + stored);
  const auto streams = std::make_shared<Streams>();
  for (int64_t i = 0; i < count; ++i) streams->coded.push_back(turned(q, i * 61));
  streams->packed.resize(static_cast<size_t>(count));
  speed.kernel = "pack";
  return std::vector<TimedCase>{
      moving(std::move(speed), {values, stored}, count, [streams, rows, cols, count] {
        const size_t at = streams->turn(static_cast<size_t>(count));
        Result<PackedTensor> made = pack(streams->coded[at], {rows, cols});
        if (made.ok()) streams->packed[at] = *std::move(made);
      })};
}

// unpack: to codes; else to floats.
Cases unpacked_cases(const Bench& bench, const QuantScheme& scheme, KernelSpeed speed,
                     bool to_codes) {
  const int64_t rows = bench.options.rows, cols = bench.options.cols;
  const double values = static_cast<double>(rows * cols);
  const auto streams = std::make_shared<Streams>();
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q,
                          coded(random_floats(rows * cols, kSeed), scheme, rows, cols));
  NIBBLE_ASSIGN_OR_RETURN(PackedTensor packed, pack(q, {rows, cols}));
  const Moved bytes{static_cast<double>(packed.bytes()), (to_codes ? 1 : 4) * values};
  const int64_t count = bench.operands(bytes.read + bytes.written);
  for (int64_t i = 0; i < count; ++i) {
    NIBBLE_ASSIGN_OR_RETURN(packed, pack(turned(q, i * 61), {rows, cols}));
    streams->packed.push_back(packed);
  }
  if (to_codes) {
    streams->coded.assign(static_cast<size_t>(count), q);
    speed.kernel = "unpack";
  } else {
    streams->y.assign(static_cast<size_t>(count),
                      Floats(static_cast<size_t>(rows * cols)));
    speed.kernel = "dequantize_rows";
  }
  return std::vector<TimedCase>{
      moving(std::move(speed), bytes, count, [streams, rows, cols, count, to_codes] {
        const size_t at = streams->turn(static_cast<size_t>(count));
        if (to_codes) {  // what pack() made is sound
          (void)unpack(streams->packed[at], streams->coded[at]);
        } else {
          (void)dequantize_rows(streams->packed[at], 0,
                                {streams->y[at].data(), rows, cols});
        }
      })};
}

Cases unpack_cases(const Bench& bench, const QuantScheme& scheme, KernelSpeed speed) {
  return unpacked_cases(bench, scheme, std::move(speed), true);
}

Cases dequantize_cases(const Bench& bench, const QuantScheme& scheme, KernelSpeed speed) {
  return unpacked_cases(bench, scheme, std::move(speed), false);
}

Cases rms_norm_cases(const Bench& bench, const QuantScheme&, KernelSpeed speed) {
  const int64_t rows = bench.options.rows, cols = bench.options.cols;
  const double values = static_cast<double>(rows * cols);
  const int64_t count = bench.operands(8 * values);
  const auto streams = std::make_shared<Streams>();
  streams->x = matrices(count, rows, cols, kSeed);
  streams->y.assign(static_cast<size_t>(count), Floats(static_cast<size_t>(rows * cols)));
  streams->weight.assign(static_cast<size_t>(cols), 1.5f);
  const RmsNormKernel& kernel = select_rms_norm();
  speed.kernel = kernel.name;
  return std::vector<TimedCase>{moving(
      std::move(speed), {4 * values, 4 * values}, count,
      [streams, rows, cols, count, run = kernel.run] {
        const size_t at = streams->turn(static_cast<size_t>(count));
        for_rows(rows, [&](int64_t first, int64_t n) {
          run({streams->x[at].data() + first * cols, n, cols}, streams->weight.data(),
              1e-5f, {streams->y[at].data() + first * cols, n, cols});
        });
      })};
}

// Heads of 128, as many as --shape's columns have room for, at least one.
Cases rope_cases(const Bench& bench, const QuantScheme&, KernelSpeed speed) {
  const int64_t rows = bench.options.rows;
  const int64_t cols = std::max<int64_t>(1, bench.options.cols / kHeadDim) * kHeadDim;
  const double values = static_cast<double>(rows * cols);
  const int64_t count = bench.operands(8 * values);
  const auto streams = std::make_shared<Streams>();
  streams->x = matrices(count, rows, cols, kSeed);
  const auto table = std::make_shared<RopeTable>(kHeadDim, 10000.0);
  table->reserve(rows);
  const RopeKernel& kernel = select_rope();
  speed.kernel = kernel.name;
  return std::vector<TimedCase>{
      moving(std::move(speed), {4 * values, 4 * values}, count,
             [streams, table, rows, cols, count, kernel = &kernel] {
               const size_t at = streams->turn(static_cast<size_t>(count));
               for_rows(rows, [&](int64_t first, int64_t n) {
                 apply_rope(*kernel, {streams->x[at].data() + first * cols, n, cols},
                            *table, first, false);
               });
             })};
}

Cases silu_mul_cases(const Bench& bench, const QuantScheme&, KernelSpeed speed) {
  const int64_t rows = bench.options.rows, cols = bench.options.cols;
  const double values = static_cast<double>(rows * cols);
  const int64_t count = bench.operands(12 * values);
  const auto streams = std::make_shared<Streams>();
  streams->x = matrices(count, rows, cols, kSeed);
  streams->up = matrices(count, rows, cols, kSeed + 1);
  streams->y.assign(static_cast<size_t>(count), Floats(static_cast<size_t>(rows * cols)));
  const SiluMulKernel& kernel = select_silu_mul();
  speed.kernel = kernel.name;
  return std::vector<TimedCase>{
      moving(std::move(speed), {8 * values, 4 * values}, count,
             [streams, rows, cols, count, run = kernel.run] {
               const size_t at = streams->turn(static_cast<size_t>(count));
               for_rows(rows, [&](int64_t first, int64_t n) {
                 const int64_t from = first * cols;
                 run(streams->x[at].data() + from, streams->up[at].data() + from,
                     n * cols, streams->y[at].data() + from);
               });
             })};
}

struct MatrixCase {
  const char* name;
  const char* scheme;  // "": none
  Cases (*make)(const Bench& bench, const QuantScheme& scheme, KernelSpeed speed);
};
constexpr MatrixCase kMatrixCases[] = {{"quantize_rows", "", quantize_rows_cases},
                                       {"quantize", "int4/g128@f16", quantize_cases},
                                       {"quantize", "int8n/r@f32", quantize_cases},
                                       {"pack", "int4/g128@f16", pack_cases},
                                       {"pack", "int8n/r@f32", pack_cases},
                                       {"unpack", "int4/g128@f16", unpack_cases},
                                       {"unpack", "int8n/r@f32", unpack_cases},
                                       {"dequantize", "int4/g128@f16", dequantize_cases},
                                       {"dequantize", "int8n/r@f32", dequantize_cases},
                                       {"dequantize", "nf4/f64@f32", dequantize_cases},
                                       {"rms_norm", "", rms_norm_cases},
                                       {"rope", "", rope_cases},
                                       {"silu_mul", "", silu_mul_cases}};

}  // namespace

Result<std::vector<TimedPart>> operation_parts(const KernelSpeedOptions& options,
                                               std::vector<std::string>* all) {
  std::vector<TimedPart> parts;
  const auto add = [&](KernelSpeed speed, bool writes, const auto& make) {
    const std::string text = kernel_case_text(speed);
    all->push_back(text);
    if (text.find(options.filter) == std::string::npos) return;
    parts.push_back({.what = text,
                     .make = [speed, make](Bench& bench) { return make(bench, speed); },
                     .writes = writes});
  };
  const auto wanted = [&](const char* group) {
    return std::find(options.groups.begin(), options.groups.end(), group) !=
           options.groups.end();
  };
  if (wanted("attention")) {
    for (const KvCase& c : kKvCases) {
      add({.group = "attention",
           .scheme = cat(c.kv, " ", c.heads, " of ", c.kv_heads),
           .activation = "f32",
           .tokens = c.tokens},
          false, [&c](const Bench& bench, const KernelSpeed& speed) {
            return attention_cases(bench, c, speed);
          });
    }
  }
  if (wanted("conv")) {
    for (const ConvCase& c : kConvCases) {
      add({.group = "conv", .scheme = text_of(c), .activation = "u8", .tokens = 1}, false,
          [&c](const Bench&, const KernelSpeed& speed) { return conv_cases(c, speed); });
    }
  }
  if (wanted("memory")) {
    for (const MatrixCase& c : kMatrixCases) {
      QuantScheme scheme;
      if (c.scheme[0] != '\0') {
        NIBBLE_ASSIGN_OR_RETURN(scheme, parse_scheme(c.scheme));
      }
      add({.group = "memory",
           .scheme = cat(c.name, c.scheme[0] == '\0' ? "" : " ", c.scheme),
           .activation = "f32",
           .tokens = options.rows},
          true, [&c, scheme](const Bench& bench, const KernelSpeed& speed) {
            return c.make(bench, scheme, speed);
          });
    }
  }
  return parts;
}

}  // namespace nibble
