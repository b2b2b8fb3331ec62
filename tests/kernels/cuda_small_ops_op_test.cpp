// The smaller CUDA kernels under the emulator, in every order of their threads.
#include <gtest/gtest.h>

#include "cuda_emulated_runner.h"
#include "cuda_small_ops_cases.h"

namespace nibble::cuda {
namespace {

class CudaSmallOps : public ::testing::TestWithParam<Order> {
 protected:
  EmulatedRunner runner_{GetParam()};
};

TEST_P(CudaSmallOps, RmsNorm) { EXPECT_EQ(check_rms_norm(runner_), ""); }
TEST_P(CudaSmallOps, RmsNormOfSumsAndHeads) {
  EXPECT_EQ(check_rms_norm_lines(runner_), "");
}
TEST_P(CudaSmallOps, Embedding) { EXPECT_EQ(check_embedding(runner_), ""); }
TEST_P(CudaSmallOps, AddAndSiluMul) { EXPECT_EQ(check_pairs(runner_), ""); }
TEST_P(CudaSmallOps, NextToken) { EXPECT_EQ(check_next_token(runner_), ""); }
TEST_P(CudaSmallOps, PlainLinear) { EXPECT_EQ(check_plain_linear(runner_), ""); }
TEST_P(CudaSmallOps, Rope) { EXPECT_EQ(check_rope(runner_), ""); }
TEST_P(CudaSmallOps, QuantizeRows) { EXPECT_EQ(check_quantize_rows(runner_), ""); }
TEST_P(CudaSmallOps, StoreKv) { EXPECT_EQ(check_store_kv(runner_), ""); }
TEST_P(CudaSmallOps, Dequantize) { EXPECT_EQ(check_dequantize(runner_), ""); }
TEST_P(CudaSmallOps, Prefill) { EXPECT_EQ(check_prefill(runner_), ""); }
TEST_P(CudaSmallOps, Products) { EXPECT_EQ(check_products(runner_), ""); }
TEST_P(CudaSmallOps, FakeQuantize) { EXPECT_EQ(check_fake_quantize(runner_), ""); }

std::string order_name(const ::testing::TestParamInfo<Order>& order) {
  const char* const names[] = {"forward", "backward", "mixed"};
  return names[static_cast<size_t>(order.param)];
}
INSTANTIATE_TEST_SUITE_P(Orders, CudaSmallOps, ::testing::ValuesIn(kOrders), order_name);

}  // namespace
}  // namespace nibble::cuda
