// Linear rows: decode (one token) in bytes of weight a second, prefill (512 tokens) in
// floating point operations a second, beside what the machine itself gives: reading
// memory, and the peaks of the instructions. A linear row's label says how it went about
// it and with which instruction (recipes/eval/linear_limit.h).
//
//   linear_bench --benchmark_filter=decode.*int4
//
// One thread, and one linear weight, which a cache may hold; the CPU is named in the
// context. Several threads, weights from memory and fractions of the limits of the same
// rounds: nibble bench --kernels.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/cpu.h"
#include "kernels/base/parallel.h"
#include "kernels/base/splitmix64.h"
#include "kernels/hardware/probe.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/conv2d/conv2d.h"
#include "kernels/ops/kv_attention/kv_attention.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/scheme/coded_matrix.h"
#include "recipes/eval/linear_limit.h"

namespace nibble {
namespace {

constexpr int64_t kOutputs = 4096, kInputs = 4096;

const char* const kSchemes[] = {
    "f32",           "bf16",         "f16",
    "int4/g128@f16", "int4/g32@f16", "uint4/g128@f16+z/g128@uint4",
    "int8/r@f32",    "nf4/f64@f32",  "e2m1/g16@e4m3/t@f32",
    "e2m1/g32@e8m0", "e4m3/r@f32"};

std::vector<float> random_floats(int64_t n, uint64_t seed) {
  SplitMix64 random(seed);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = static_cast<float>(random.uniform() - 0.5);
  return x;
}

Result<LinearWeight> random_weight(const char* text) {
  const std::vector<float> values = random_floats(kOutputs * kInputs, 1);
  NIBBLE_ASSIGN_OR_RETURN(const QuantScheme scheme, parse_scheme(text));
  if (scheme.is_float()) {
    Tensor tensor = make_tensor({kOutputs, kInputs}, values);
    if (scheme.code != Element::f32) {
      // The upper halves: bf16 values, and f16 bit patterns that are as good as any to
      // time.
      std::vector<uint16_t> bits(values.size());
      for (size_t i = 0; i < bits.size(); ++i) {
        uint32_t word;
        std::memcpy(&word, &values[i], 4);
        bits[i] = static_cast<uint16_t>(word >> 16);
      }
      tensor.dtype = scheme.code == Element::bf16 ? DType::bf16 : DType::f16;
      tensor.bytes = Bytes::copy_of(bits.data(), bits.size() * 2);
    }
    return linear_weight(tensor);
  }
  const MatrixView<const float> x(values.data(), kOutputs, kInputs);
  NIBBLE_ASSIGN_OR_RETURN(CodedMatrix q, choose_scales(x, scheme, ScaleRule{}));
  NIBBLE_RETURN_IF_ERROR(quantize(x, q));
  NIBBLE_ASSIGN_OR_RETURN(const PackedTensor packed, pack(q, {kOutputs, kInputs}));
  return linear_weight(packed);
}

void run(benchmark::State& state, const LinearKernel* kernel, const char* scheme,
         int64_t tokens) {
  const Result<LinearWeight> weight = random_weight(scheme);
  if (!weight.ok()) return state.SkipWithError(weight.status().message().c_str());
  const Result<PreparedLinear> prepared = prepare_linear(*kernel, *weight);
  if (!prepared.ok()) return state.SkipWithError(prepared.status().message().c_str());
  const std::vector<float> x = random_floats(tokens * kInputs, 2);
  std::vector<float> y(static_cast<size_t>(tokens * kOutputs));
  for (auto _ : state) {
    run_linear(*prepared, MatrixView<const float>(x.data(), tokens, kInputs), nullptr,
               MatrixView<float>(y.data(), tokens, kOutputs));
    benchmark::DoNotOptimize(y.data());
  }
  const LinearLimit limit = linear_limit(*prepared, tokens);
  state.SetLabel(limit.peak == nullptr
                     ? limit.regime
                     : std::string(limit.regime) + ", " + limit.peak->name);
  const double runs = static_cast<double>(state.iterations());
  const double weight_bytes = static_cast<double>(
      weight->is_plain() ? weight->plain.bytes.size()
                         : static_cast<size_t>(weight->packed.bytes()));
  if (tokens == 1) {
    state.counters["weight_GB/s"] =
        benchmark::Counter(runs * weight_bytes / 1e9, benchmark::Counter::kIsRate);
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(runs * 2e-9 * static_cast<double>(tokens * kInputs * kOutputs),
                         benchmark::Counter::kIsRate);
}

// Reading a weight that no cache holds: the limit of decode.
void read_memory(benchmark::State& state) {
  const std::vector<uint64_t> data(32 << 20, 1);  // 256 MB
  for (auto _ : state) {
    uint64_t sum[8] = {};
    for (size_t i = 0; i < data.size(); i += 8) {
      for (size_t j = 0; j < 8; ++j) sum[j] += data[i + j];
    }
    benchmark::DoNotOptimize(sum);
  }
  state.counters["GB/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * static_cast<double>(data.size()) * 8e-9,
      benchmark::Counter::kIsRate);
}

void run_attention(benchmark::State& state, const AttentionKernel* kernel, int64_t tokens,
                   int64_t length) {
  const AttentionShape shape{8, 4, 64, 0.125f};
  const std::vector<float> q = random_floats(tokens * 512, 1);
  const std::vector<float> k = random_floats(length * 256, 2);
  const std::vector<float> v = random_floats(length * 256, 3);
  std::vector<float> y(static_cast<size_t>(tokens * 512));
  for (auto _ : state) {
    attention(*kernel, shape, {q.data(), tokens, 512}, {k.data(), length, 256},
              {v.data(), length, 256}, {y.data(), tokens, 512});
    benchmark::DoNotOptimize(y.data());
  }
}

// One token over 8,192 positions, from cache to cache so that each lies in memory.
struct KvCase {
  const char* kv;
  int64_t heads, kv_heads, head_dim;
};
constexpr KvCase kKvCases[] = {
    {"int8", 8, 8, 128},  {"int8", 32, 8, 128}, {"int8n/b32x1@f16,int8", 8, 8, 128},
    {"int4", 8, 8, 128},  {"int4", 32, 8, 128}, {"fp8", 8, 8, 128},
    {"fp8", 32, 8, 128},  {"f16", 8, 8, 128},   {"f16", 32, 8, 128},
    {"bf16", 32, 8, 128}, {"f32", 32, 8, 128}};
// What no cache holds: of caches of keys and values together, and of reading.
int64_t working_set() {
  std::string note;
  static const int64_t bytes = memory_working_set(this_machine(), &note);
  return bytes;
}

// Bytes a second of CPU at which vectors read memory that no cache holds.
double read_limit() {
  static const Result<ReadBuffer> buffer = ReadBuffer::create(working_set());
  const std::clock_t start = std::clock();
  if (!buffer.ok() || !read_sum(*buffer, 1).ok()) return NAN;
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  return static_cast<double>(buffer->bytes()) / seconds;
}

void run_kv_attention(benchmark::State& state, const KvAttentionKernel* kernel,
                      const KvCase& c) {
  constexpr int64_t kLength = 8192, kAppended = 256;
  const int64_t width = c.kv_heads * c.head_dim;
  const AttentionShape shape{c.heads, c.kv_heads, c.head_dim, 0.1f};
  const Result<KvScheme> scheme = parse_kv_scheme(c.kv, c.kv_heads, c.head_dim);
  if (!scheme.ok()) return state.SkipWithError(scheme.status().message().c_str());
  const std::vector<float> rows = random_floats(kAppended * width, 1);
  const auto filled = [&](const QuantScheme& as) {
    Result<KvRows> cache = KvRows::create(as, kLength, width);
    for (int64_t i = 0; cache.ok() && i < kLength; i += kAppended) {
      const Status status = cache->append({rows.data(), kAppended, width});
      if (!status.ok()) return Result<KvRows>(status);
    }
    return cache;
  };
  const Result<KvRows> k = filled(scheme->keys), v = filled(scheme->values);
  if (!k.ok() || !v.ok()) return state.SkipWithError("no cache");
  const int64_t bytes = k->bytes() + v->bytes();
  const std::vector<std::pair<KvRows, KvRows>> caches(
      static_cast<size_t>(1 + working_set() / bytes), {*k, *v});
  const std::vector<float> q = random_floats(c.heads * c.head_dim, 2);
  std::vector<float> y(q.size());
  const int64_t q_width = c.heads * c.head_dim;
  size_t next = 0;
  double limit = read_limit();
  for (auto _ : state) {
    kv_attention(*kernel, shape, {q.data(), 1, q_width}, caches[next].first,
                 caches[next].second, {y.data(), 1, q_width});
    next = (next + 1) % caches.size();
    benchmark::DoNotOptimize(y.data());
  }
  limit = (limit + read_limit()) / 2;
  // Of what memory gives before and after.
  const double read = static_cast<double>(state.iterations() * bytes);
  state.counters["cache_GB/s"] =
      benchmark::Counter(read * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_read"] =
      benchmark::Counter(read / limit, benchmark::Counter::kIsRate);
}

// 3x3 with a border of 1, as ResNet-20 (CIFAR) and ResNet-50 have them.
struct ConvCase {
  int64_t channels, size, outputs;
};
constexpr ConvCase kConvs[] = {{16, 32, 16},   {32, 16, 32},   {64, 8, 64},  {64, 56, 64},
                               {128, 28, 128}, {256, 14, 256}, {512, 7, 512}};

// int8: with the rounding to the next layer's codes, as the integer path does it.
void run_conv(benchmark::State& state, const Conv2dKernel* kernel, const ConvCase& c) {
  const Conv2dShape shape{.channels = c.channels,
                          .height = c.size,
                          .width = c.size,
                          .outputs = c.outputs,
                          .kernel_h = 3,
                          .kernel_w = 3,
                          .pad_h = 1,
                          .pad_w = 1};
  const int64_t patch = shape.patch(), pixels = shape.height * shape.width;
  const std::vector<float> x = random_floats(c.channels * pixels, 1),
                           w = random_floats(c.outputs * patch, 2);
  const std::vector<uint8_t> codes(static_cast<size_t>(c.channels * pixels), 77);
  const std::vector<int8_t> weight(static_cast<size_t>(c.outputs * patch), -5);
  std::vector<float> y(static_cast<size_t>(c.outputs * pixels));
  std::vector<uint8_t> rounded(y.size());
  const std::vector<int32_t> bias(static_cast<size_t>(c.outputs), 5);
  const std::vector<float> multiplier(bias.size(), 0.001f);
  const Conv2dCodes target{bias.data(), multiplier.data(), 0.03f, 0, 255};
  if (kernel->activation == LinearActivation::f32) {
    const Result<LinearWeight> plain = linear_weight(make_tensor({c.outputs, patch}, w));
    if (!plain.ok()) return state.SkipWithError(plain.status().message().c_str());
    const auto conv = prepare_conv2d(shape, *plain, kernel->flags);
    if (!conv.ok()) return state.SkipWithError(conv.status().message().c_str());
    for (auto _ : state) run_conv2d(*conv, x.data(), nullptr, y.data());
  } else {
    const auto conv = prepare_conv2d_s8(shape, weight, true, kernel->flags);
    if (!conv.ok()) return state.SkipWithError(conv.status().message().c_str());
    for (auto _ : state) {
      run_conv2d_s8(*conv, codes.data(), target, rounded.data());
      benchmark::DoNotOptimize(rounded.data());
    }
  }
  state.counters["GOP/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * 2e-9 *
                             static_cast<double>(c.outputs * patch * pixels),
                         benchmark::Counter::kIsRate);
}

// The most of an instruction, by CPU seconds.
void run_peak(benchmark::State& state, const PeakRow* row) {
  constexpr int64_t kRounds = 100000;
  for (auto _ : state) benchmark::DoNotOptimize(row->run(kRounds));
  state.counters["GOP/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * 1e-9 *
                             static_cast<double>(kRounds * row->operations),
                         benchmark::Counter::kIsRate);
}

void register_all() {
  const auto usable = [](uint32_t flags) { return (flags & ~cpu_info().flags) == 0; };
  for (const PeakRow& row : peak_rows()) {
    if (!can_run(row).ok()) continue;
    benchmark::RegisterBenchmark((std::string("peak/") + row.name).c_str(), run_peak,
                                 &row);
  }
  benchmark::RegisterBenchmark("read_memory", read_memory);
  for (const LinearKernel& kernel : linear_kernels()) {
    if (!usable(kernel.flags) || kernel.flags == 0)
      continue;  // definitions are not for speed
    for (const char* scheme : kSchemes) {
      const Result<QuantScheme> parsed = parse_scheme(scheme);
      // Each scheme on the row that serves it, once an instruction set.
      if (!parsed.ok() ||
          select_linear(*parsed, kInputs, kernel.activation, kernel.flags) != &kernel) {
        continue;
      }
      for (const int64_t tokens : {int64_t{1}, int64_t{512}}) {
        const std::string name = std::string(tokens == 1 ? "decode/" : "prefill/") +
                                 kernel.name + "/" + scheme;
        benchmark::RegisterBenchmark(name.c_str(), run, &kernel, scheme, tokens)
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
  for (const AttentionKernel& kernel : attention_kernels()) {
    if (!usable(kernel.flags) || kernel.flags == 0) continue;
    const std::string name = kernel.name;
    benchmark::RegisterBenchmark((name + "/1_of_512").c_str(), run_attention, &kernel, 1,
                                 512)
        ->Unit(benchmark::kMicrosecond);
    benchmark::RegisterBenchmark((name + "/512_of_512").c_str(), run_attention, &kernel,
                                 512, 512)
        ->Unit(benchmark::kMicrosecond);
  }
  for (const KvAttentionKernel& kernel : kv_attention_kernels()) {
    if (!usable(kernel.flags) || kernel.flags == 0) continue;
    for (const KvCase& c : kKvCases) {
      const std::string name = std::string(kernel.name) + "/" + c.kv + "/" +
                               std::to_string(c.heads) + "_of_" +
                               std::to_string(c.kv_heads);
      benchmark::RegisterBenchmark(name.c_str(), run_kv_attention, &kernel, c)
          ->Unit(benchmark::kMicrosecond);
    }
  }
  for (const Conv2dKernel& kernel : conv2d_kernels()) {
    if (!usable(kernel.flags) || kernel.flags == 0) continue;
    for (const ConvCase& c : kConvs) {
      const std::string name = std::string(kernel.name) + "/" +
                               std::to_string(c.channels) + "x" + std::to_string(c.size) +
                               "x" + std::to_string(c.size);
      benchmark::RegisterBenchmark(name.c_str(), run_conv, &kernel, c)
          ->Unit(benchmark::kMicrosecond);
    }
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  nibble::set_thread_count(1);
  benchmark::AddCustomContext("cpu", nibble::cpu_info().model);
  nibble::register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
