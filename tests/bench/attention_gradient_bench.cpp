// Attention forward and backward as training runs it, beside LibTorch's, in one process:
// docs14m's layer (6 heads over 2 of keys, 64 wide) on 4 sequences.
//
//   attention_gradient_bench --benchmark_repetitions=5
//
// NIBBLE_THREADS threads for both (one by default). FLOP counts the products of a causal
// mask: two forward, five backward.
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <torch/types.h>

#include "kernels/base/cpu.h"
#include "kernels/base/parallel.h"
#include "ptq/module/attention_op.h"

namespace nibble {
namespace {

constexpr int64_t kSequences = 4;
constexpr AttentionShape kShape{6, 2, 64, 0.125f};

torch::Tensor by_libtorch(const AttentionShape& s, const torch::Tensor& q,
                          const torch::Tensor& k, const torch::Tensor& v) {
  const auto split = [&](const torch::Tensor& x, int64_t count) {
    return x.reshape({-1, q.size(-2), count, s.head_dim}).transpose(1, 2);
  };
  return at::scaled_dot_product_attention(split(q, s.heads), split(k, s.kv_heads),
                                          split(v, s.kv_heads), {}, 0.0,
                                          /*is_causal=*/true, s.scale,
                                          /*enable_gqa=*/true)
      .transpose(1, 2)
      .reshape(q.sizes());
}

template <class Attend>
void run(benchmark::State& state, const Attend& attend, at::ScalarType type) {
  const int64_t length = state.range(0);
  const auto leaf = [&](int64_t heads) {
    return at::randn({kSequences, length, heads * kShape.head_dim})
        .to(type)
        .requires_grad_();
  };
  torch::Tensor q = leaf(kShape.heads), k = leaf(kShape.kv_heads), v = leaf(kShape.kv_heads);
  const torch::Tensor dy = at::randn_like(q).detach();
  for (auto _ : state) {
    attend(kShape, q, k, v).backward(dy);
    for (torch::Tensor* x : {&q, &k, &v}) x->mutable_grad().reset();
  }
  const double products = 7.0 * static_cast<double>(kSequences * kShape.heads * length *
                                                    (length + 1) / 2 * kShape.head_dim);
  state.counters["FLOP/s"] = benchmark::Counter(
      2 * products, benchmark::Counter::kIsIterationInvariantRate);
}

void ours(benchmark::State& state) { run(state, attention_op, at::kFloat); }
void libtorch(benchmark::State& state) { run(state, by_libtorch, at::kFloat); }
void libtorch_bf16(benchmark::State& state) { run(state, by_libtorch, at::kBFloat16); }

void lengths(benchmark::internal::Benchmark* b) {
  b->Arg(128)->Arg(512)->Arg(2048)->Unit(benchmark::kMillisecond);
}
BENCHMARK(ours)->Apply(lengths);
BENCHMARK(libtorch)->Apply(lengths);
BENCHMARK(libtorch_bf16)->Apply(lengths);

const bool ready = [] {
  if (std::getenv("NIBBLE_THREADS") == nullptr) set_thread_count(1);
  at::set_num_threads(thread_count());
  benchmark::AddCustomContext("cpu", cpu_info().model);
  benchmark::AddCustomContext("threads", std::to_string(thread_count()));
  return true;
}();

}  // namespace
}  // namespace nibble
