// Decode attention for the GPU under the emulator.
#include <gmock/gmock.h>

#include "cuda_attention_cases.h"
#include "cuda_emulated_runner.h"
#include "op_test.h"

namespace nibble::cuda {
namespace {

class CudaAttention : public OpTest {};

TEST_F(CudaAttention, GivesWhatTheDefinitionGives) {
  for (const AttentionCase& c : attention_cases()) {
    SCOPED_TRACE(text(c));
    AttentionData data = make_attention_data(c, 1);
    EmulatedRunner runner;
    ASSERT_EQ(run_attention_case(runner, data), "");
  }
}

TEST_F(CudaAttention, GivesTheSameBitsInAnyOrderOfThreadsAndBlocks) {
  for (const KvForm form : {KvForm::f16, KvForm::int8}) {
    AttentionData data = make_attention_data(
        {.form = form, .heads = 4, .kv_heads = 2, .head_dim = 64, .lengths = {300, 70}},
        2);
    ASSERT_GT(data.plan.splits, 1);
    std::vector<uint8_t> first;
    for (const Order order : kOrders) {
      EmulatedRunner runner(order);
      ASSERT_EQ(run_attention_case(runner, data), "");
      if (first.empty()) first = data.y;
      ASSERT_EQ(first, data.y);
    }
  }
}

TEST_F(CudaAttention, RefusesWhatHasNoKernel) {
  AttentionData data = make_attention_data({.head_dim = 64, .lengths = {5}}, 1);
  data.c.head_dim = 80;
  EmulatedRunner runner;
  EXPECT_THAT(run_attention_case(runner, data), ::testing::HasSubstr("found 80"));
}

}  // namespace
}  // namespace nibble::cuda
