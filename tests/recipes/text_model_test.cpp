// A model on a GPU (here under the emulator) where recipes measure or time it.
#include "recipes/eval/text_model.h"

#include <gmock/gmock.h>

#include "cuda_decoder_cases.h"
#include "cuda_emulated_runner.h"
#include "recipes/eval/evaluate.h"
#include "recipes/eval/speed.h"

namespace nibble {
namespace {

using testing::HasSubstr;

std::shared_ptr<const Artifact> small_model() {
  cuda::DecoderCase c = cuda::decoder_cases()[0];
  c.size.layers = 1;
  return std::make_shared<const Artifact>(cuda::decoder_artifact(c));
}

TEST(GpuTextModel, IsMeasuredAgainstTheCpu) {
  const auto artifact = small_model();
  auto executor = Executor::create(artifact, {});
  ASSERT_TRUE(executor.ok()) << executor.status().message();
  const auto cpu = text_model(*executor);
  const auto gpu = text_model(artifact, "", std::make_shared<cuda::EmulatedRunner>());
  const std::vector<std::vector<int32_t>> sequences = {
      {3, 7, 1, 90, 4, 4, 12}, {9, 8, 7, 6, 5}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}};
  const auto quality = evaluate_text(*gpu, cpu.get(), sequences, {});
  ASSERT_TRUE(quality.ok()) << quality.status().message();
  EXPECT_EQ(quality->tokens, 20);
  // bf16 between the layers: close, and not equal.
  EXPECT_GT(*quality->kl, 0);
  EXPECT_LT(*quality->kl, 1e-3);
  EXPECT_EQ(gpu->kernels().at("model.embed_tokens.weight"), "linear_bf16_int4__cuda");
  const auto again = evaluate_text(*gpu, cpu.get(), sequences, {});
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_EQ(again->sequence_kl, quality->sequence_kl);
}

TEST(GpuTextModel, IsTimed) {
  auto decoder = cuda::Decoder::create(*small_model(), {.capacity = 40},
                                       std::make_shared<cuda::EmulatedRunner>());
  ASSERT_TRUE(decoder.ok()) << decoder.status().message();
  const auto speed = measure_gpu_speed(
      *decoder, "here", {.repeats = 2, .decode_tokens = 3, .prefill_tokens = 9});
  ASSERT_TRUE(speed.ok()) << speed.status().message();
  EXPECT_GT(speed->decode.median, 0);
  EXPECT_GT(speed->prefill.median, 0);
  EXPECT_EQ(speed->decode.repeats, 2);
  EXPECT_EQ(speed->kernels.at("linear_bf16_int4__cuda"), 8);
}

TEST(OpenGpu, NamesWhatIsNoDevice) {
  for (const char* name : {"gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1 "}) {
    const auto gpu = open_gpu(name);
    EXPECT_EQ(gpu.status().code(), StatusCode::invalid_argument) << name;
    EXPECT_THAT(gpu.status().message(), HasSubstr(name));
  }
  EXPECT_FALSE(is_gpu("cpu"));
  EXPECT_FALSE(is_gpu(""));
}

}  // namespace
}  // namespace nibble
