#include "ptq/module/program_module.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/batchnorm.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "kernels/base/float_types.h"
#include "ptq/module/fused_ops.h"
#include "ptq/module/torch_ops.h"
#include "recipes/data/images.h"
#include "recipes/models/load_model.h"
#include "tests/ptq/small_models.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::node;
using testing::small_cnn;
using testing::small_llama;

const std::filesystem::path kData =
    std::filesystem::path(NIBBLE_SOURCE_DIR) / ".." / "shared" / "data";

template <class Call>
Status status_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.status();
  }
  return ok_status();
}

torch::Tensor random(std::vector<int64_t> shape, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, at::kFloat);
}

torch::Tensor random_ids(std::vector<int64_t> shape, int64_t vocabulary, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randint(0, vocabulary, shape, generator, at::kLong);
}

double largest_difference(const torch::Tensor& a, const torch::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(TorchOps, EveryOpOfTheProgramHasARowAndNoOtherHas) {
  std::set<std::string> known, rows;
  for (const OpInfo& op : all_ops()) known.insert(op.name);
  for (const TorchOp& op : torch_ops())
    EXPECT_TRUE(rows.insert(op.name).second) << op.name;
  EXPECT_EQ(known, rows);
}

TEST(ProgramModule, ParametersHaveTheCheckpointsNames) {
  const Artifact artifact = small_llama(1);
  ProgramModule module(artifact);
  std::set<std::string> expected, found;
  for (const auto& [name, tensor] : artifact.tensors) expected.insert(name);
  for (const auto& item : module->named_parameters()) {
    EXPECT_TRUE(found.insert(item.key()).second) << item.key();
  }
  EXPECT_EQ(expected, found);
  EXPECT_TRUE(found.count("model.layers.0.self_attn.q_proj.weight"));
}

TEST(ProgramModule, ATiedWeightIsOneParameterWithBothGradients) {
  const Artifact artifact = small_llama(2);
  ProgramModule module(artifact);
  const torch::Tensor ids = random_ids({2, 6}, 23, 3);
  module->forward(ids).square().sum().backward();
  const torch::Tensor tied =
      module->parameter("model.embed_tokens.weight").grad().clone();

  Artifact untied = artifact;
  untied.tensors["lm_head.weight"] = artifact.tensors.at("model.embed_tokens.weight");
  untied.program.nodes.back().parameters["weight"] = "lm_head.weight";
  ProgramModule apart(untied);
  apart->forward(ids).square().sum().backward();
  const torch::Tensor sum = apart->parameter("model.embed_tokens.weight").grad() +
                            apart->parameter("lm_head.weight").grad();
  EXPECT_LT(largest_difference(tied, sum), 1e-4 * tied.abs().max().item<double>());
  EXPECT_GT(tied.abs().max().item<double>(), 1.0);
}

// The decoder again in plain torch ops of one sentence each, with rotation as a complex
// product.
torch::Tensor plain_llama(const ProgramModule& m, const torch::Tensor& ids,
                          bool interleaved) {
  auto weight = [&](const std::string& name) { return m->parameter(name + ".weight"); };
  auto norm = [&](const torch::Tensor& x, const std::string& name) {
    return x * at::rsqrt(x.square().mean(-1, true) + 1e-5) * weight(name);
  };
  const int64_t batch = ids.size(0), length = ids.size(1);
  auto turn = [&](torch::Tensor x, int64_t heads) {
    x = x.view({batch, length, heads, 4});
    const torch::Tensor angle = at::outer(at::arange(length, at::kFloat),
                                          at::tensor({1.0f, 0.01f}));  // 10000^(-2i/4)
    const torch::Tensor phase =
        at::polar(at::ones_like(angle), angle).view({1, length, 1, 2});
    const torch::Tensor pairs =
        interleaved ? x.view({batch, length, heads, 2, 2})
                    : x.view({batch, length, heads, 2, 2}).transpose(3, 4);
    torch::Tensor turned =
        at::view_as_real(at::view_as_complex(pairs.contiguous()) * phase);
    if (!interleaved) turned = turned.transpose(3, 4);
    return turned.reshape({batch, length, heads, 4});
  };
  torch::Tensor x = at::embedding(weight("model.embed_tokens"), ids);
  const torch::Tensor future =
      at::full({length, length}, -std::numeric_limits<float>::infinity()).triu(1);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string at = "model.layers." + std::to_string(layer);
    torch::Tensor h = norm(x, at + ".input_layernorm");
    auto q = turn(at::linear(h, weight(at + ".self_attn.q_proj")), 4).transpose(1, 2);
    auto k = turn(at::linear(h, weight(at + ".self_attn.k_proj")), 2).transpose(1, 2);
    auto v = at::linear(h, weight(at + ".self_attn.v_proj"))
                 .view({batch, length, 2, 4})
                 .transpose(1, 2);
    k = k.repeat_interleave(2, 1);  // query head h reads KV head h / 2
    v = v.repeat_interleave(2, 1);
    const auto p = at::softmax(at::matmul(q, k.transpose(2, 3)) * 0.5 + future, -1);
    h = at::matmul(p, v).transpose(1, 2).reshape({batch, length, 16});
    x = x + at::linear(h, weight(at + ".self_attn.o_proj"));
    h = norm(x, at + ".post_attention_layernorm");
    h = at::silu(at::linear(h, weight(at + ".mlp.gate_proj"))) *
        at::linear(h, weight(at + ".mlp.up_proj"));
    x = x + at::linear(h, weight(at + ".mlp.down_proj"));
  }
  return at::linear(norm(x, "model.norm"), weight("model.embed_tokens"));
}

TEST(ProgramModule, DecoderAgreesWithPlainOpsInValueAndGradient) {
  for (const bool interleaved : {false, true}) {
    ProgramModule module(small_llama(4, interleaved));
    const torch::Tensor ids = random_ids({3, 9}, 23, 5);
    const torch::Tensor toward = random({3, 9, 23}, 6);
    const torch::Tensor logits = module->forward(ids);
    (logits * toward).sum().backward();
    std::map<std::string, torch::Tensor> gradients;
    for (auto& item : module->named_parameters()) {
      gradients[item.key()] = item.value().grad().clone();
      item.value().mutable_grad().reset();
    }
    const torch::Tensor plain = plain_llama(module, ids, interleaved);
    EXPECT_LT(largest_difference(logits, plain), 2e-5) << interleaved;
    (plain * toward).sum().backward();
    for (auto& item : module->named_parameters()) {
      const double size = item.value().grad().abs().max().item<double>();
      EXPECT_GT(size, 1e-3) << item.key();
      EXPECT_LT(largest_difference(gradients[item.key()], item.value().grad()),
                1e-4 * size)
          << item.key();
    }
  }
}

TEST(ProgramModule, BlocksInOrderAreTheWholeForward) {
  for (const Artifact& artifact : {small_llama(7), small_cnn(8)}) {
    ProgramModule module(artifact);
    module->eval();
    torch::NoGradGuard no_grad;
    const bool text = artifact.program.is_language_model();
    const torch::Tensor input =
        text ? random_ids({2, 5}, 23, 9) : random({2, 3, 8, 8}, 9);
    std::map<std::string, torch::Tensor> live = {
        {artifact.program.inputs[0].name, input}};
    std::vector<int> blocks = {kFirstBlock};
    for (int b = 0; b < artifact.program.block_count(); ++b) blocks.push_back(b);
    blocks.push_back(kLastBlock);
    for (const int block : blocks) live = module->run_block(block, live);
    EXPECT_TRUE(
        at::equal(live.at(artifact.program.outputs[0].name), module->forward(input)));
  }
}

TEST(ProgramModule, BatchNormFollowsTrainAndEval) {
  const Artifact artifact = small_cnn(10);
  ProgramModule module(artifact);
  torch::nn::BatchNorm2d reference(4);  // momentum 0.1, epsilon 1e-5
  {
    torch::NoGradGuard no_grad;
    reference->weight.copy_(module->parameter("bn1.weight"));
    reference->bias.copy_(module->parameter("bn1.bias"));
    reference->running_mean.copy_(module->parameter("bn1.running_mean"));
    reference->running_var.copy_(module->parameter("bn1.running_var"));
  }
  EXPECT_EQ(module->buffers().size(), 6u);  // three norms
  const torch::Tensor before = module->parameter("bn1.running_mean").clone();
  torch::Tensor expected, found;
  module->set_tap([&](const Node& n, const std::vector<torch::Tensor>& inputs,
                      const torch::Tensor& output) {
    if (n.name != "bn1") return;
    expected = reference->forward(inputs[0]);
    found = output;
  });
  for (const bool training : {true, false}) {
    module->train(training);
    reference->train(training);
    module->forward(random({4, 3, 8, 8}, 11));
    EXPECT_TRUE(at::equal(expected, found)) << training;
    EXPECT_TRUE(
        at::equal(reference->running_mean, module->parameter("bn1.running_mean")));
    EXPECT_TRUE(at::equal(reference->running_var, module->parameter("bn1.running_var")));
  }
  EXPECT_FALSE(at::equal(before, module->parameter("bn1.running_mean")));
}

TEST(ProgramModule, APackedWeightIsABufferWithoutGradient) {
  Artifact artifact = small_cnn(12);
  const Tensor weight = artifact.tensors.at("linear.weight");
  const std::vector<float> values = *to_float(weight);
  CodedMatrix coded =
      *choose_scales({values.data(), 5, 8}, *parse_scheme("int4/g4@f16"), {});
  ASSERT_TRUE(quantize({values.data(), 5, 8}, coded).ok());
  artifact.packed["linear.weight"] = *pack(coded, {5, 8});
  artifact.tensors.erase("linear.weight");
  std::vector<float> expected(40);
  ASSERT_TRUE(dequantize(coded, {expected.data(), 5, 8}).ok());

  ProgramModule module(artifact);
  const torch::Tensor found = module->parameter("linear.weight");
  EXPECT_FALSE(found.requires_grad());
  EXPECT_TRUE(at::equal(found, at::tensor(expected).view({5, 8})));
  EXPECT_FALSE(module->named_parameters().contains("linear.weight"));
  module->forward(random({1, 3, 8, 8}, 13)).sum().backward();
  EXPECT_TRUE(module->parameter("conv1.weight").grad().defined());
}

TEST(ProgramModule, QuantizersSitOnWeightsValuesAndInputs) {
  ProgramModule module(small_cnn(14));
  module->eval();
  const torch::Tensor input = random({2, 3, 8, 8}, 15);
  std::map<std::string, torch::Tensor> read;  // what each node reads
  module->set_tap(
      [&](const Node& n, const std::vector<torch::Tensor>& inputs, const torch::Tensor&) {
        read[n.name] = inputs[0].detach().clone();
      });
  const torch::Tensor plain = module->forward(input);
  const torch::Tensor relu1 = read.at("layer1.0.conv1");

  ActivationScheme eight{*parse_scheme("uint8/t@f32"), false, 0.02f, 0};
  ActivationScheme four{*parse_scheme("uint4/t@f32"), false, 0.3f, 0};
  module->quantize_value("relu1", FakeQuantize(eight));
  module->quantize_input("layer1.0.conv1", FakeQuantize(four));
  module->forward(input);
  const torch::Tensor shared = (relu1 / 0.02f).round().clamp(0, 255) * 0.02f;
  EXPECT_TRUE(at::allclose(read.at("layer1.0.shortcut"), shared, 0, 1e-6));
  EXPECT_TRUE(at::allclose(read.at("layer1.0.conv1"),
                           (shared / 0.3f).round().clamp(0, 15) * 0.3f, 0, 1e-6));
  module->quantize_value("relu1", nullptr);
  module->quantize_input("layer1.0.conv1", nullptr);
  EXPECT_TRUE(at::equal(plain, module->forward(input)));

  module->quantize_weight("conv1.weight",
                          FakeQuantize(*parse_scheme("int2/t@f32"), ScaleRule{}));
  EXPECT_GT(largest_difference(plain, module->forward(input)), 1e-2);
  module->quantize_weight("conv1.weight", nullptr);
  EXPECT_TRUE(at::equal(plain, module->forward(input)));
}

// Where the quantizer cuts below 0 itself the relu is left out: the same bits.
TEST(ProgramModule, AReluBeforeAnUnsignedQuantizerIsThatQuantizers) {
  const torch::Tensor images = random({4, 3, 8, 8}, 9);
  torch::Tensor outputs[2];
  std::map<std::string, torch::Tensor> gradients[2];
  for (const bool with_tap : {false, true}) {  // a tap sees each op's own output
    ProgramModule module(small_cnn(3));
    for (const char* value : {"relu1", "layer1.0.relu1"}) {
      FakeQuantize quantizer(
          ActivationScheme{*parse_scheme("uint4/t@f32"), false, 0.05f, 0});
      quantizer->learn_scale();
      module->quantize_value(value, quantizer);
    }
    int relus = 0;
    if (with_tap) {
      module->set_tap([&](const Node& node, const std::vector<torch::Tensor>&,
                          const torch::Tensor& output) {
        if (node.op != "relu") return;
        ++relus;
        EXPECT_GE(output.min().item<float>(), 0.0f);
      });
    }
    outputs[with_tap] = module->forward(images);
    outputs[with_tap].square().sum().backward();
    EXPECT_EQ(relus > 0, with_tap);
    for (const auto& item : module->named_parameters())
      gradients[with_tap][item.key()] = item.value().grad();
  }
  EXPECT_TRUE(at::equal(outputs[0], outputs[1]));
  for (const auto& [name, gradient] : gradients[0])
    EXPECT_TRUE(at::equal(gradient, gradients[1].at(name))) << name;
}

TEST(ProgramModule, BlocksThatRunAgainGiveTheSameGradients) {
  for (const bool frozen : {false, true}) {  // then nothing before block 0 learns
    torch::Tensor losses[2];
    std::map<std::string, torch::Tensor> gradients[2];
    int runs[2] = {};
    for (const bool again : {false, true}) {
      const Artifact model = small_llama(5);
      ProgramModule module(model);
      const Node& layer = *model.program.find("model.layers.0.mlp.up_proj");
      FakeQuantize quantizer(*parse_scheme("int4/g8@f32"), ScaleRule{});
      module->quantize_weight(layer.parameter("weight"), quantizer);
      if (frozen) module->parameter("model.embed_tokens.weight").set_requires_grad(false);
      module->set_recompute(again);
      module->set_tap(
          [&](const Node& node, const std::vector<torch::Tensor>&, const torch::Tensor&) {
            runs[again] += node.block >= 0 && node.block != kLastBlock;
          });
      const torch::Tensor logits = module->forward(random_ids({2, 7}, 23, 3));
      const int forward = runs[again];
      losses[again] = logits.square().mean();
      losses[again].backward();
      EXPECT_EQ(runs[again], again ? 2 * forward : forward);
      for (const auto& item : module->named_parameters())
        gradients[again][item.key()] = item.value().grad();
    }
    EXPECT_GT(runs[0], 0);
    EXPECT_TRUE(at::equal(losses[0], losses[1]));
    for (const auto& [name, gradient] : gradients[0]) {
      ASSERT_EQ(gradient.defined(), gradients[1].at(name).defined()) << name;
      if (gradient.defined()) {
        EXPECT_TRUE(at::equal(gradient, gradients[1].at(name))) << name;
      }
    }
  }
  const Status status =
      status_of([] { ProgramModule(small_cnn(1))->set_recompute(true); });
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_THAT(status.message(), HasSubstr("a program without batch norms was required"));
}

TEST(ProgramModule, Bf16ProductsOfConvolutionsStayNear) {
  const torch::Tensor images = random({4, 3, 8, 8}, 9);
  ProgramModule module(small_cnn(3));
  const torch::Tensor exact = module->forward(images).detach();
  module->set_bf16_products(true);
  const torch::Tensor near = module->forward(images);
  near.square().sum().backward();
  const double distance = ((near - exact).norm() / exact.norm()).item<double>();
  EXPECT_LT(distance, 0.03);
  EXPECT_GT(distance, 1e-5);  // it does round
  EXPECT_EQ(near.scalar_type(), at::kFloat);
  EXPECT_EQ(module->parameter("conv1.weight").grad().scalar_type(), at::kFloat);
}

TEST(ProgramModule, ARoundedBiasIsAWholeMultipleOfTheProductOfScales) {
  ProgramModule module(small_cnn(18, 5, /*with_batch_norm=*/false));
  module->round_bias("conv1");
  const torch::Tensor input = random({2, 3, 8, 8}, 19);
  Status status = status_of([&] { module->forward(input); });
  EXPECT_EQ(status.code(), StatusCode::failed_precondition);
  EXPECT_THAT(status.message(), HasSubstr("conv1: a static input scale and a symmetric"));
  EXPECT_EQ(status_of([&] { module->round_bias("relu1"); }).code(),
            StatusCode::not_found);

  FakeQuantize weight(*parse_scheme("int4/r@f32"), ScaleRule{});
  const ActivationScheme image{*parse_scheme("int8/t@f32"), false, 0.1f, 0};
  module->quantize_weight("conv1.weight", weight);
  module->quantize_value("image", FakeQuantize(image));
  torch::Tensor seen;
  module->set_tap([&](const Node& n, const std::vector<torch::Tensor>& inputs,
                      const torch::Tensor& output) {
    if (n.name != "conv1") return;
    // What the bias added: the output less the convolution without it.
    const torch::Tensor w = weight->forward(module->parameter("conv1.weight"));
    seen = (output - at::conv2d(inputs[0], w, {}, 1, 1)).mean({0, 2, 3});
  });
  module->forward(input).sum().backward();
  const torch::Tensor bias = module->parameter("conv1.bias");
  const CodedMatrix levels = weight->levels(module->parameter("conv1.weight"));
  double moved = 0;
  for (int64_t c = 0; c < 4; ++c) {
    const double unit = levels.scales[0].values[c] * 0.1;
    const double expected = std::nearbyint(bias[c].item<double>() / unit) * unit;
    EXPECT_NEAR(seen[c].item<double>(), expected, 1e-6);
    moved += std::abs(expected - bias[c].item<double>());
  }
  EXPECT_GT(moved, 1e-3);
  EXPECT_GT(bias.grad().abs().max().item<double>(), 0.0);  // straight through
}

TEST(ProgramModule, TensorsComeBackAsTheyWentIn) {
  const Artifact artifact = small_cnn(16);
  ProgramModule module(artifact);
  const auto tensors = module->tensors();
  ASSERT_EQ(tensors.size(), artifact.tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const Tensor& original = artifact.tensors.at(name);
    EXPECT_EQ(tensor.shape, original.shape) << name;
    EXPECT_EQ(tensor.bytes.text(), original.bytes.text()) << name;
  }
}

TEST(ProgramModule, ErrorsNameWhatIsWrong) {
  Artifact missing = small_cnn(17);
  missing.tensors.erase("bn1.bias");
  Status status = status_of([&] { ProgramModule module(missing); });
  EXPECT_EQ(status.code(), StatusCode::not_found);
  EXPECT_THAT(status.message(),
              HasSubstr("[program_module] bn1: bias 'bn1.bias' was required"));

  Artifact strange = small_cnn(17);
  strange.program.nodes[0].op = "conv9d";
  status = status_of([&] { ProgramModule module(strange); });
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_THAT(status.message(), HasSubstr("found 'conv9d'"));

  ProgramModule module(small_cnn(17));
  EXPECT_EQ(status_of([&] { module->quantize_value("nothing", nullptr); }).code(),
            StatusCode::not_found);
  EXPECT_EQ(status_of([&] { module->quantize_input("nothing", nullptr); }).code(),
            StatusCode::not_found);
  EXPECT_EQ(status_of([&] { module->quantize_weight("nothing", nullptr); }).code(),
            StatusCode::not_found);
  status = status_of([&] { module->set_parameter("linear.bias", at::zeros({3})); });
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_THAT(status.message(),
              HasSubstr("linear.bias: shape [5] was required; found [3]"));
  status = status_of([&] { module->run_block(0, {}); });
  EXPECT_THAT(status.message(), HasSubstr("value 'relu1' was required"));
}

TEST(ToTorch, KeepsNumbersOfEveryKind) {
  const float half_values[] = {1.5f, -2.0f};
  Tensor half;
  half.dtype = DType::f16;
  half.shape = {2};
  const uint16_t bits[] = {f16_from_float(half_values[0]),
                           f16_from_float(half_values[1])};
  half.bytes = Bytes::copy_of(bits, sizeof bits);
  EXPECT_TRUE(at::equal(to_torch(half), at::tensor({1.5f, -2.0f})));
  const int32_t ids[] = {7, -1, 3};
  const torch::Tensor whole = to_torch(make_tensor({3}, std::span<const int32_t>(ids)));
  EXPECT_EQ(whole.scalar_type(), at::kLong);
  const Tensor back = from_torch(whole);
  EXPECT_EQ(back.dtype, DType::i32);
  EXPECT_EQ(*to_int32(back), (std::vector<int32_t>{7, -1, 3}));
}

// --- golden: figures of independent programs (shared data's README)

TEST(ProgramModuleGolden, Stories260KLogits) {
  const auto folder = kData / "models" / "stories260K";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no " << folder;
  LoadOptions options;
  options.tokenizer = folder / "tok512.bin";
  Result<Artifact> artifact = load_model(folder / "stories260K.bin", options);
  ASSERT_TRUE(artifact.ok()) << artifact.status().message();
  ProgramModule module(*artifact);
  module->eval();
  torch::NoGradGuard no_grad;
  const torch::Tensor ids = at::tensor(
      {1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426},
      at::kLong);
  const torch::Tensor last = module->forward(ids.unsqueeze(0))[0][-1];
  const torch::Tensor golden = at::tensor({-3.85166f, 4.98118f, -3.85259f, -3.85196f,
                                           -3.85160f, -3.85282f, -3.85253f, -3.85300f});
  EXPECT_LT(largest_difference(last.slice(0, 0, 8), golden), 1e-4);
  EXPECT_EQ(last.argmax().item<int64_t>(), 338);
}

TEST(ProgramModuleGolden, Docs14mLogits) {
  const auto folder = kData / "models" / "docs14m";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no " << folder;
  Result<Artifact> artifact = load_model(folder, LoadOptions{});
  ASSERT_TRUE(artifact.ok()) << artifact.status().message();
  ProgramModule module(*artifact);
  module->eval();
  torch::NoGradGuard no_grad;
  const torch::Tensor ids = at::tensor(
      {539, 64, 1042, 64, 35, 1071, 2086, 418, 200, 200, 690, 200, 200, 596, 678, 283},
      at::kLong);
  const torch::Tensor last = module->forward(ids.unsqueeze(0))[0][-1];
  const torch::Tensor golden = at::tensor({-6.75918f, -7.06672f, -0.70849f, -0.42062f,
                                           -0.73737f, 1.77042f, 0.19963f, -0.30221f});
  EXPECT_LT(largest_difference(last.slice(0, 0, 8), golden), 1e-4);
  EXPECT_EQ(last.argmax().item<int64_t>(), 797);
}

TEST(ProgramModuleGolden, ResNet20OnTheFirstThousandImages) {
  const auto folder = kData / "models" / "cifar10_resnet";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no " << folder;
  Result<Artifact> artifact =
      load_model(folder / "resnet20_cifar10.safetensors", LoadOptions{});
  ASSERT_TRUE(artifact.ok()) << artifact.status().message();
  Result<ImageSet> images = load_images(kData / "cifar10", Split::test);
  ASSERT_TRUE(images.ok()) << images.status().message();
  ProgramModule module(*artifact);
  module->eval();
  torch::NoGradGuard no_grad;
  constexpr int64_t kCount = 1000;
  torch::Tensor batch = at::empty({kCount, 3, 32, 32});
  preprocess(*images, 0, kCount, artifact->image_mean, artifact->image_std,
             batch.mutable_data_ptr<float>());
  const torch::Tensor answers = module->forward(batch).argmax(1);
  int64_t right = 0;
  for (int64_t i = 0; i < kCount; ++i)
    right += answers[i].item<int64_t>() == images->labels[i];
  // 91.73 % of all 10,000; three standard errors of a thousand are 2.6 points.
  EXPECT_GE(right, 891);
  EXPECT_LE(right, 944);
}

}  // namespace
}  // namespace nibble
