// A whole decoder of CUDA kernels under the emulator, against the CPU's executor.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "cuda_decoder_cases.h"
#include "cuda_emulated_runner.h"
#include "kernels/runtime/cuda_device.h"
#include "kernels/runtime/cuda_nodes.h"

namespace nibble::cuda {
namespace {

class CudaDecoder : public ::testing::TestWithParam<DecoderCase> {};

TEST_P(CudaDecoder, GivesTheExecutorsLogits) {
  EXPECT_EQ(check_decoder(GetParam(), std::make_shared<EmulatedRunner>()), "");
}
std::string case_name(const ::testing::TestParamInfo<DecoderCase>& info) {
  std::string name = info.param.name;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}
INSTANTIATE_TEST_SUITE_P(Cases, CudaDecoder, ::testing::ValuesIn(decoder_cases()),
                         case_name);

TEST(CudaDecoderCalls, WhatOneLaunchCanDoIsOne) {
  const Artifact artifact = decoder_artifact(decoder_cases()[0]);
  EmulatedRunner runner;
  const Result<NodeCalls> net =
      make_node_calls(artifact, {.type = Float16::f16, .capacity = 32, .kv = ""}, runner);
  ASSERT_TRUE(net.ok()) << net.status().message();
  // Of a block: norm, q k v, rope, store, attention, o, norm, gate up, silu_mul, down.
  EXPECT_EQ(net->calls.size(), 1u + 2 * 10 + 2);
  EXPECT_EQ(net->kernels.at("model.layers.1.mlp.up_proj.weight"),
            "linear_f16_int4__cuda");
}

TEST(CudaDecoderCalls, OtherLayoutsAreNotJoined) {
  const Artifact artifact = decoder_artifact(decoder_cases()[5]);
  EmulatedRunner runner;
  const Result<NodeCalls> net =
      make_node_calls(artifact, {.type = Float16::f16, .capacity = 32, .kv = ""}, runner);
  ASSERT_TRUE(net.ok()) << net.status().message();
  // q alone, k and v as one; so q and k do not lie side by side: two ropes.
  EXPECT_EQ(net->calls.size(), 1u + 2 * 12 + 2);
  EXPECT_EQ(net->kernels.at("model.layers.0.self_attn.q_proj.weight"),
            "linear_f16_int8__cuda");
  EXPECT_EQ(net->kernels.at("lm_head.weight"), "linear_f16_plain__cuda");
  std::set<std::string> rows;
  for (const CudaKernel& kernel : cuda_kernels()) rows.insert(kernel.name);
  for (const auto& [layer, kernel] : net->kernels)
    EXPECT_EQ(rows.count(kernel), 1u) << layer << ": " << kernel;
}

std::string refusal(const Artifact& artifact, const DecoderOptions& options) {
  const Result<Decoder> made =
      Decoder::create(artifact, options, std::make_shared<EmulatedRunner>());
  return made.ok() ? "" : made.status().message();
}

TEST(CudaDecoderErrors, NameWhatHasNoKernel) {
  DecoderCase c = decoder_cases()[0];
  Artifact artifact = decoder_artifact(c);
  EXPECT_THAT(refusal(artifact, {.kv = "int4"}), ::testing::HasSubstr("KV cache of f16"));
  EXPECT_THAT(refusal(artifact, {.capacity = 4096}), ::testing::HasSubstr("1 to 128"));
  artifact.layers["model.layers.0.mlp.up_proj.weight"].input = ActivationScheme{
      .scheme = sample::take(parse_scheme("int8n/r@f32")), .dynamic = true};
  EXPECT_THAT(refusal(artifact, {}), ::testing::HasSubstr("model.layers.0.mlp.up_proj"));
  artifact = decoder_artifact(c);
  c.size.head_dim = 32;
  EXPECT_THAT(refusal(decoder_artifact(c), {.kv = "int8"}),
              ::testing::HasSubstr("found 32"));
  artifact.program.nodes[2].op = "gelu";
  EXPECT_THAT(refusal(artifact, {}), ::testing::HasSubstr("gelu"));
}

TEST(CudaDecoderErrors, NothingIsAppendedThatDoesNotFit) {
  const Artifact artifact = decoder_artifact(decoder_cases()[0]);
  Result<Decoder> decoder =
      Decoder::create(artifact, {.type = Float16::f16, .capacity = 4},
                      std::make_shared<EmulatedRunner>());
  ASSERT_TRUE(decoder.ok()) << decoder.status().message();
  std::vector<float> logits(96);
  const MatrixView<float> row(logits.data(), 1, 96);
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5}, wrong = {1, 96};
  EXPECT_EQ(decoder->forward(tokens, row).code(), StatusCode::out_of_range);
  EXPECT_EQ(decoder->forward(wrong, row).code(), StatusCode::out_of_range);
  std::vector<int32_t> chosen(5);
  EXPECT_EQ(decoder->continue_greedily(1, chosen).code(), StatusCode::out_of_range);
  EXPECT_EQ(decoder->length(), 0);
}

TEST(CudaDevice, SaysWhatIsMissing) {
  const auto runner = DeviceRunner::create();
  if (runner.ok()) GTEST_SKIP() << "there is a GPU";
  EXPECT_EQ(runner.status().code(), StatusCode::unsupported);
}

}  // namespace
}  // namespace nibble::cuda
