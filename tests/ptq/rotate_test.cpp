// A rotated decoder is the same function, in LibTorch and in the runtime, and loses its
// outliers.
#include "kernels/program/edits/rotate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "kernels/program/edits/low_rank.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "ptq/module/fused_ops.h"
#include "ptq/module/program_module.h"
#include "tests/ptq/small_models.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::small_cnn;
using testing::small_llama;

Artifact rotated(const Artifact& model, const RotateOptions& options) {
  RotatedModel turned = value_or_throw(rotate(model.program, model.tensors, options));
  Artifact result = model;
  result.program = std::move(turned.program);
  result.tensors = std::move(turned.tensors);
  return result;
}

torch::Tensor logits(const Artifact& model, const torch::Tensor& ids) {
  const torch::NoGradGuard no_gradients;
  ProgramModule module(model);
  module->eval();
  return module->forward(ids);
}

torch::Tensor runtime_logits(const Artifact& model, const torch::Tensor& ids) {
  Executor executor = value_or_throw(
      Executor::create(std::make_shared<const Artifact>(model), ExecutorOptions{}));
  auto cache = value_or_throw(executor.make_cache(32));
  const torch::Tensor tokens = ids.to(at::kInt).contiguous();
  const int64_t n = tokens.numel(), width = model.program.vocabulary;
  torch::Tensor y = at::empty({1, n, width}, at::kFloat);
  throw_if_error(executor.forward({tokens.const_data_ptr<int32_t>(), static_cast<size_t>(n)},
                                  *cache, {y.data_ptr<float>(), n, width}));
  return y;
}

TEST(Rotate, EachPartLeavesTheFunctionAsItWas) {
  const Artifact model = small_llama(3);
  const torch::Tensor ids = at::randint(23, {1, 12}, at::kLong);
  const torch::Tensor before = logits(model, ids);
  for (const RotateOptions options :
       {RotateOptions{.residual = true}, RotateOptions{.heads = true},
        RotateOptions{.down = true}, RotateOptions{.cache = true},
        RotateOptions{.residual = true, .heads = true, .down = true, .cache = true}}) {
    const Artifact turned = rotated(model, options);
    EXPECT_LT((logits(turned, ids) - before).abs().max().item<float>(),
              2e-5 * before.abs().max().item<float>());
    EXPECT_LT((runtime_logits(turned, ids) - before).abs().max().item<float>(),
              2e-5 * before.abs().max().item<float>());
    EXPECT_EQ(has_online_rotation(turned.program), options.down || options.cache);
  }
}

TEST(Rotate, ResidualTakesNormsInAndUntiesTheHead) {
  const Artifact model = small_llama(4);
  const Artifact turned = rotated(model, {.residual = true});
  EXPECT_EQ(turned.program.find("lm_head")->parameter("weight"), "lm_head.weight");
  for (const auto& [name, tensor] : turned.tensors) {
    if (name.find("norm") == std::string::npos) continue;
    EXPECT_EQ(*to_float(tensor), std::vector<float>(16, 1.0f)) << name;
  }
  // Every weight of the stream has moved; another seed is another rotation.
  const Artifact other = rotated(model, {.residual = true, .seed = 2});
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight",
                           "model.layers.1.mlp.down_proj.weight",
                           "model.layers.0.self_attn.q_proj.weight"}) {
    EXPECT_NE(*to_float(turned.tensors.at(name)), *to_float(other.tensors.at(name)));
  }
}

TEST(Rotate, AnOutlyingChannelIsSpread) {
  Artifact model = small_llama(5);
  const std::string name = "model.embed_tokens.weight";
  std::vector<float> rows = *to_float(model.tensors.at(name));
  for (size_t i = 3; i < rows.size(); i += 16) rows[i] *= 50;
  model.tensors[name] = make_tensor({23, 16}, rows);
  const auto peak = [&](const Artifact& a) {  // largest over root mean square
    const torch::Tensor w = ProgramModule(a)->parameter(name);
    return (w.abs().max() / w.square().mean().sqrt()).item<float>();
  };
  EXPECT_GT(peak(model), 6);
  EXPECT_LT(peak(rotated(model, {.residual = true})), 4);
}

TEST(Rotate, TheTransformsGradientIsItsOwn) {
  torch::manual_seed(1);
  const torch::Tensor x = at::randn({3, 5, 24}).requires_grad_(true);
  const torch::Tensor weight = at::randn({3, 5, 24});
  const torch::Tensor identity = hadamard(at::eye(8), 8);  // the matrix itself
  const torch::Tensor y = hadamard(x, 8);
  const torch::Tensor exact = x.reshape({3, 5, 3, 8}).matmul(identity).reshape({3, 5, 24});
  EXPECT_TRUE(at::allclose(y, exact, 1e-5, 1e-6));
  const torch::Tensor mine = torch::autograd::grad({(y * weight).sum()}, {x})[0];
  const torch::Tensor theirs = torch::autograd::grad({(exact * weight).sum()}, {x})[0];
  EXPECT_TRUE(at::allclose(mine, theirs, 1e-5, 1e-6));
}

std::string why_not(const Artifact& model, const RotateOptions& options) {
  return rotate(model.program, model.tensors, options).status().message();
}

TEST(Rotate, RefusesWhatItCannotKeep) {
  const Artifact net = small_cnn(1);
  EXPECT_THAT(why_not(net, {.residual = true}),
              HasSubstr("a decoder whose blocks begin with RMS norms is required"));
  EXPECT_THAT(why_not(net, {.heads = true}), HasSubstr("heads: a model with attention"));
  EXPECT_THAT(why_not(net, {.down = true}), HasSubstr("gated MLPs"));
  EXPECT_THAT(why_not(net, {.cache = true}), HasSubstr("cache: a model with attention"));

  Artifact model = small_llama(6);
  const Artifact turned = rotated(model, {.down = true});
  EXPECT_THAT(why_not(turned, {.residual = true}), HasSubstr("without adapters"));
  // A layer norm subtracts a mean.
  Artifact with_mean = model;
  for (Node& node : with_mean.program.nodes) {
    if (node.name != "model.layers.1.input_layernorm") continue;
    node.op = "layer_norm";
    node.parameters["bias"] = "model.bias";
  }
  EXPECT_THAT(why_not(with_mean, {.residual = true}),
              HasSubstr("model.layers.1.input_layernorm: op layer_norm reads the residual "
                        "stream"));
  Artifact missing = model;
  missing.tensors.erase("model.layers.0.mlp.up_proj.weight");
  EXPECT_THAT(why_not(missing, {.residual = true}),
              HasSubstr("model.layers.0.mlp.up_proj.weight: a float tensor is required"));
}

}  // namespace
}  // namespace nibble
