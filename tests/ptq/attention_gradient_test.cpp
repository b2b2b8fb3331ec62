// Attention with a gradient of our own against LibTorch's.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include "kernels/base/parallel.h"
#include "ptq/module/attention_op.h"

namespace nibble {
namespace {

using torch::Tensor;

Tensor random(std::vector<int64_t> shape, uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::kFloat);
}

Tensor by_libtorch(const AttentionShape& s, const Tensor& q, const Tensor& k,
                   const Tensor& v) {
  const int64_t length = q.size(-2);
  const auto split = [&](const Tensor& x, int64_t count) {
    return x.reshape({-1, length, count, s.head_dim}).transpose(1, 2);
  };
  Tensor mask = at::ones({length, length}, at::kBool);
  if (s.causal) mask = mask.tril();
  if (s.window > 0) mask = mask.triu(1 - s.window);
  return at::scaled_dot_product_attention(split(q, s.heads), split(k, s.kv_heads),
                                          split(v, s.kv_heads), mask, 0.0, false, s.scale,
                                          s.heads != s.kv_heads)
      .transpose(1, 2)
      .reshape(q.sizes());
}

TEST(AttentionOp, ValuesAndGradientsAreLibTorchs) {
  for (const AttentionShape& s :
       {AttentionShape{6, 2, 16, 0.25f}, AttentionShape{4, 4, 8, 0.3f, 5},
        AttentionShape{2, 1, 64, 0.125f, 0, false}}) {
    const Tensor wide = random({2, 37, (s.heads + 2 * s.kv_heads) * s.head_dim}, 1);
    const Tensor dy = random({2, 37, s.heads * s.head_dim}, 2);
    const auto run = [&](auto&& attend) {
      Tensor x = wide.clone().requires_grad_();
      // Three slices of one value, as a joined projection gives: none is contiguous.
      const std::vector<Tensor> parts = at::split_with_sizes(
          x, {s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim},
          -1);
      const Tensor y = attend(s, parts[0], parts[1], parts[2]);
      y.backward(dy);
      return std::pair{y.detach(), x.grad()};
    };
    const auto [y, slope] = run(attention_op);
    const auto [expected, expected_slope] = run(by_libtorch);
    EXPECT_LT((y - expected).abs().max().item<double>(), 2e-6);
    EXPECT_LT((slope - expected_slope).abs().max().item<double>(), 1e-5);
    const torch::NoGradGuard none;
    const std::vector<Tensor> parts = at::split_with_sizes(
        wide, {s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim},
        -1);
    EXPECT_TRUE(at::equal(attention_op(s, parts[0], parts[1], parts[2]), y));
  }
}

}  // namespace
}  // namespace nibble
