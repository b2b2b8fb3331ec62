// Kernels and a steady step of a decoder allocate nothing: this binary counts every
// allocation that goes through operator new or aligned_alloc.
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/base/parallel.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/embedding/embedding.h"
#include "kernels/ops/kv_attention/kv_attention.h"
#include "kernels/ops/moe/moe.h"
#include "kernels/ops/quantize_rows/quantize_rows.h"
#include "kernels/ops/rms_norm/rms_norm.h"
#include "kernels/ops/rope/rope.h"
#include "kernels/ops/scratch.h"
#include "kernels/ops/silu_mul/silu_mul.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "op_test.h"
#include "tests/export/sample_llama.h"

namespace {

std::atomic<int64_t> news{0}, scratches{0};

void* counted(std::size_t size, std::size_t alignment) {
  ++news;
  void* data = nullptr;
  if (posix_memalign(&data, alignment, size) != 0) throw std::bad_alloc();
  return data;
}

}  // namespace

void* operator new(std::size_t size) { return counted(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return counted(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, std::size_t) noexcept { std::free(data); }
void operator delete(void* data, std::align_val_t) noexcept { std::free(data); }
void operator delete(void* data, std::size_t, std::align_val_t) noexcept {
  std::free(data);
}
// ops/scratch.h and tensors take their memory here.
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  ++scratches;
  void* data = nullptr;
  return posix_memalign(&data, alignment, size) == 0 ? data : nullptr;
}

namespace nibble {
namespace {

struct Allocations {
  int64_t of_new, of_scratch;
};

// Of the third and fourth run: the first ones take what later ones use again.
template <class Run>
Allocations allocations(const Run& run) {
  for (int i = 0; i < 2; ++i) run();
  const int64_t before = news, scratch_before = scratches;
  for (int i = 0; i < 2; ++i) run();
  return {news - before, scratches - scratch_before};
}

class NoAllocation : public OpTest {
 protected:
  // With one thread, and with two. Which of them takes a task is chance, so a thread's
  // scratch may still be growing then.
  template <class Run>
  static void expect_none(const Run& run) {
    for (const int threads : {1, 2}) {
      set_thread_count(threads);
      const Allocations found = allocations(run);
      EXPECT_EQ(found.of_new, 0) << threads << " threads";
      if (threads == 1) {
        EXPECT_EQ(found.of_scratch, 0);
      }
    }
    set_thread_count(1);
  }
};

TEST_F(NoAllocation, IsCounted) {
  const Allocations vectors = allocations([] {
    std::vector<int> values(100);
    values.assign(200, 1);
  });
  EXPECT_EQ(vectors.of_new, 4);
  struct alignas(128) Wide {
    char bytes[128];
  };
  EXPECT_EQ(allocations([] { EXPECT_NE(std::make_unique<Wide>(), nullptr); }).of_new, 2);
  const Allocations scratch = allocations([] { Scratch<float>().get(10); });
  EXPECT_EQ(scratch.of_new, 0);
  EXPECT_EQ(scratch.of_scratch, 2);
}

TEST_F(NoAllocation, ScratchGrowsSeldom) {
  const int64_t before = scratches;
  Scratch<float> scratch;
  for (size_t n = 1; n <= 10000; ++n) scratch.get(n)[n - 1] = 1;
  EXPECT_GT(scratches - before, 1);
  EXPECT_LT(scratches - before, 30);  // 1.5^23 > 10,000
}

TEST_F(NoAllocation, OfLoops) {
  std::vector<int64_t> sums(100);
  int64_t a = 1, b = 2, c = 3, d = 4;  // more captures than a std::function has room for
  expect_none([&] {
    parallel_for(
        100, [&](int64_t i) { sums[static_cast<size_t>(i)] += a * i + b * c + d; });
  });
  EXPECT_EQ(sums[2], 8 * (2 + 6 + 4));
}

TEST_F(NoAllocation, OfLinearRows) {
  constexpr int64_t kInputs = 256, kOutputs = 300;
  const std::vector<float> x = random_floats(40 * kInputs, 1);
  std::vector<float> y(40 * kOutputs);
  const std::vector<float> bias = random_floats(kOutputs, 2);
  int rows = 0;
  for (const LinearKernel& kernel : linear_kernels()) {
    // The definitions, which have no panel, allocate.
    if (!this_cpu_has(kernel.flags) || kernel.panel == nullptr) continue;
    int schemes = 0;
    for (const char* scheme :
         {"f32", "bf16", "f16", "int4/g32@f16", "uint4/g32@f16+z/g32@uint4",
          "uint4/g32@f16+m/g32@f16", "int8/r@f32", "int8/g64@f16", "nf4/g64@f32",
          "nf4/f64@dyn8+o/f16384@f32", "e2m1/g16@e4m3/t@f32", "e4m3/r@f32"}) {
      const LinearWeight weight = random_weight(scheme, kOutputs, kInputs, 3);
      if (!kernel.can_run(weight.scheme, weight.cols, kernel.activation)) continue;
      const Result<PreparedLinear> prepared = prepare_linear(kernel, weight);
      ASSERT_TRUE(prepared.ok()) << prepared.status().message();
      for (const int64_t tokens : {1, 4, 40}) {
        SCOPED_TRACE(cat(kernel.name, ", ", scheme, ", ", tokens, " tokens"));
        expect_none([&] {
          run_linear(*prepared, MatrixView<const float>(x.data(), tokens, kInputs),
                     bias.data(), MatrixView<float>(y.data(), tokens, kOutputs));
        });
      }
      ++schemes;
    }
    EXPECT_GE(schemes, 1) << kernel.name;
    ++rows;
  }
  if (rows == 0) GTEST_SKIP() << "this CPU has the definitions alone";
}

TEST_F(NoAllocation, OfSmallRows) {
  constexpr int64_t kRows = 5, kWidth = 300;
  const std::vector<float> x = random_floats(kRows * kWidth, 1);
  const std::vector<float> weight = random_floats(kWidth, 2);
  std::vector<float> y(x.size());
  std::vector<int8_t> codes(x.size());
  float scales[kRows];
  const MatrixView<const float> in(x.data(), kRows, kWidth);
  const MatrixView<float> out(y.data(), kRows, kWidth);
  for (const QuantizeRowsKernel& kernel : quantize_rows_kernels()) {
    if (!this_cpu_has(kernel.flags)) continue;
    SCOPED_TRACE(kernel.name);
    expect_none(
        [&] { kernel.run(in, MatrixView<int8_t>(codes.data(), kRows, kWidth), scales); });
  }
  for (const RmsNormKernel& kernel : rms_norm_kernels()) {
    if (!this_cpu_has(kernel.flags)) continue;
    SCOPED_TRACE(kernel.name);
    expect_none([&] { kernel.run(in, weight.data(), 1e-5f, out); });
  }
  for (const SiluMulKernel& kernel : silu_mul_kernels()) {
    if (!this_cpu_has(kernel.flags)) continue;
    SCOPED_TRACE(kernel.name);
    expect_none([&] { kernel.run(x.data(), x.data(), kRows * kWidth, y.data()); });
  }
  RopeTable table(20, 10000);
  table.reserve(kRows);
  for (const RopeKernel& kernel : rope_kernels()) {
    if (!this_cpu_has(kernel.flags)) continue;
    SCOPED_TRACE(kernel.name);
    expect_none([&] {
      apply_rope(kernel, out, table, 0, false);
      apply_rope(kernel, out, table, 0, true);
    });
  }
  std::vector<int32_t> chosen(kRows * 2);
  expect_none([&] {
    route_tokens(MatrixView<const float>(x.data(), kRows, 60), true,
                 MatrixView<int32_t>(chosen.data(), kRows, 2),
                 MatrixView<float>(y.data(), kRows, 2));
  });
}

TEST_F(NoAllocation, OfEmbeddings) {
  std::vector<float> y(3 * 256);
  const int32_t ids[] = {7, 0, 7};
  for (const char* scheme : {"f32", "f16", "int4/g32@f16", "int8/r@f32", "e4m3/r@f32",
                             "nf4/f64@dyn8+o/f16384@f32", "uint4/g32@f16+m/g32@f16"}) {
    SCOPED_TRACE(scheme);
    const LinearWeight weight = random_weight(scheme, 8, 256, 3);
    bool ok = true;
    expect_none([&] {
      ok = ok && embedding(ids, weight, MatrixView<float>(y.data(), 3, 256)).ok();
    });
    EXPECT_TRUE(ok);
  }
}

const char* const kCaches[] = {"f32", "f16", "bf16", "int8", "fp8", "int4",
                               "int8/t@bf16=0.0625", "e4m3/t@bf16=0.0625"};

TEST_F(NoAllocation, OfAttentionOverCaches) {
  const AttentionShape shape = {
      .heads = 4, .kv_heads = 2, .head_dim = 64, .scale = 0.125f};
  // From 190 to 230 positions, over the ends of blocks of 32.
  constexpr int64_t kBefore = 190, kSteps = 40, kWidth = 128;
  const std::vector<float> x = random_floats((kBefore + kSteps) * kWidth, 1);
  const std::vector<float> q = random_floats(4 * 64, 2);
  std::vector<float> y(4 * 64);
  int rows = 0;
  for (const KvAttentionKernel& kernel : kv_attention_kernels()) {
    // The definition allocates.
    if (!this_cpu_has(kernel.flags) || kernel.isa == nullptr) continue;
    ++rows;
    for (const char* text : kCaches) {
      SCOPED_TRACE(cat(kernel.name, ", ", text));
      const KvScheme scheme = *parse_kv_scheme(text, 2, 64);
      Result<KvRows> keys = KvRows::create(scheme.keys, kBefore + kSteps, kWidth,
                                           scheme.key_scale);
      Result<KvRows> values = KvRows::create(scheme.values, kBefore + kSteps, kWidth,
                                             scheme.value_scale);
      ASSERT_TRUE(keys.ok() && values.ok());
      bool ok = keys->append({x.data(), kBefore, kWidth}).ok() &&
                values->append({x.data(), kBefore, kWidth}).ok();
      expect_none([&] {
        keys->truncate(kBefore);
        values->truncate(kBefore);
        for (int64_t t = kBefore; t < kBefore + kSteps; ++t) {
          const MatrixView<const float> row(x.data() + t * kWidth, 1, kWidth);
          ok = ok && keys->append(row).ok() && values->append(row).ok();
          kv_attention(kernel, shape, {q.data(), 1, 256}, *keys, *values,
                       {y.data(), 1, 256});
        }
      });
      EXPECT_TRUE(ok);
    }
  }
  if (rows == 0) GTEST_SKIP() << "this CPU has the definitions alone";
}

struct DecoderCase {
  const char* weights;  // "": as they are
  const char* cache;
  Compute compute = Compute::float_activations;
  const char* inputs = nullptr;  // of linear layers
};

TEST_F(NoAllocation, OfADecodersSteadyStep) {
  if ((usable_cpu_flags() & kCpuAvx2) == 0) {
    GTEST_SKIP() << "the definitions run alone, which allocate";
  }
  const DecoderCase cases[] = {
      {"", "f32"},
      {"int4/g32@f16", "f16"},
      {"int4/g32@f16", "int8", Compute::dynamic_int8},
      {"uint4/g32@f16+z/g32@uint4", "int4", Compute::bf16_activations},
      {"int8/r@f32", "fp8"},
      {"int8/r@f32", "bf16", Compute::dynamic_int8},
      {"nf4/g64@f32", "int8"},
      {"e4m3/r@f32", "e4m3/t@bf16=0.0625", Compute::bf16_activations},
      {"e4m3/r@f32", "f32,f32,fp8", Compute::float_activations, "e4m3/r@f32"},
  };
  const sample::LlamaSize size = {.vocabulary = 96,
                                  .hidden = 128,
                                  .heads = 4,
                                  .kv_heads = 2,
                                  .head_dim = 64,
                                  .intermediate = 192,
                                  .layers = 2,
                                  .context = 128,
                                  .head_norms = true};
  constexpr int64_t kPrompt = 40, kSteps = 40;
  for (const DecoderCase& c : cases) {
    SCOPED_TRACE(cat(c.weights, ", cache ", c.cache, ", ", compute_name(c.compute)));
    Artifact artifact = sample::llama(size, 7);
    if (*c.weights != 0) artifact = sample::quantized(std::move(artifact), c.weights);
    for (const Node& node : artifact.program.nodes) {
      if (c.inputs == nullptr || node.op != "linear") continue;
      artifact.layers[node.parameter("weight")].input = ActivationScheme{
          .scheme = sample::take(parse_scheme(c.inputs)), .dynamic = true};
    }
    Result<Executor> executor =
        Executor::create(std::make_shared<const Artifact>(std::move(artifact)),
                         {.compute = c.compute, .kv = c.cache});
    ASSERT_TRUE(executor.ok()) << executor.status().message();
    const auto cache = executor->make_cache(kPrompt + kSteps);
    ASSERT_TRUE(cache.ok()) << cache.status().message();
    std::vector<int32_t> tokens(kPrompt + kSteps);
    for (size_t t = 0; t < tokens.size(); ++t) {
      tokens[t] = static_cast<int32_t>(t * 31 % 96);
    }
    std::vector<float> logits(96);
    bool ok = true;
    const auto run = [&](int64_t first, int64_t count) {
      (*cache)->truncate(first);
      ok = ok && executor
                     ->forward(std::span(tokens).subspan(static_cast<size_t>(first),
                                                         static_cast<size_t>(count)),
                               **cache, {logits.data(), 1, 96})
                     .ok();
    };
    expect_none([&] { run(0, kPrompt); });
    expect_none([&] {
      for (int64_t t = kPrompt; t < kPrompt + kSteps; ++t) run(t, 1);
    });
    EXPECT_TRUE(ok);
  }
}

}  // namespace
}  // namespace nibble
