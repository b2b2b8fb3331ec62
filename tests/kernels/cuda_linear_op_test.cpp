// The CUDA linear kernels without a GPU: their packing, their plan, and the kernels
// themselves under the emulator.
#include <gmock/gmock.h>

#include "cuda_emulated_runner.h"
#include "cuda_linear_cases.h"
#include "op_test.h"

namespace nibble::cuda {
namespace {

using ::testing::HasSubstr;

class CudaLinear : public OpTest {};

TEST_F(CudaLinear, EveryCodeHasAPlaceOfItsOwn) {
  for (const LinearForm form :
       {LinearForm::int4, LinearForm::table4, LinearForm::int8, LinearForm::int8_s8}) {
    const int rows = 64, cols = 256, units = cols / unit_columns(form);
    const int bits = is_4_bit(form) ? 4 : 8;
    std::vector<int> taken(static_cast<size_t>(rows * cols * bits / 4));
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < cols; ++c) {
        const CodePlace at = code_place(form, units, r, c);
        const size_t half = static_cast<size_t>(at.byte * 2 + at.shift / 4);
        ASSERT_LT(half, taken.size());
        ++taken[half];
        // A lane's 16 bytes hold rows of g and 8 columns of t; lane 4 g + t.
        ASSERT_EQ(at.byte / 16 % 32, r % 8 * 4 + c % 32 / 8);
      }
    }
    for (size_t i = 0; i < taken.size(); i += bits == 4 ? 1 : 2) ASSERT_EQ(taken[i], 1);
  }
  std::vector<int> places(32);
  for (int row = 0; row < 32; ++row) ++places[static_cast<size_t>(level_place(row))];
  EXPECT_THAT(places, ::testing::Each(1));
}

TEST_F(CudaLinear, GroupsAreFoundWithoutADivision) {
  for (int group = 32; group <= kMostColumns; group += group < 4096 ? 32 : 4096 * 7) {
    const uint32_t inverse = group_inverse(group, 2);
    for (uint32_t slab = 0; slab <= kMostColumns / kSlab; slab += slab < 512 ? 1 : 97) {
      ASSERT_EQ(uint64_t{slab} * inverse >> 31,
                slab * kSlab / static_cast<uint32_t>(group))
          << group;
    }
  }
}

TEST_F(CudaLinear, PackingKeepsEveryCode) {
  for (const char* scheme : {"int4/g128@f16", "uint4/g32@f16+z/g32@uint4", "nf4/g64@f32",
                             "int8/r@f32", "e4m3/g32@f16", "e2m1/g32@e8m0"}) {
    for (const bool int8 : {false, true}) {
      const LinearWeight weight = random_weight(scheme, 45, 300, 1);
      if (!can_pack_linear(weight.scheme, weight.cols, int8)) continue;
      const Result<LinearPacked> packed = pack_linear(weight, int8);
      ASSERT_TRUE(packed.ok()) << packed.status().message();
      const Result<CodedMatrix> q = unpack(weight.packed);
      ASSERT_TRUE(q.ok());
      const ElementInfo& element = element_info(weight.scheme.code);
      const bool biased =
          !int8 && element.kind == ElementKind::integer && element.lowest < 0;
      const int bias = biased ? (is_4_bit(packed->form) ? 8 : 128) : 0;
      const std::vector<uint8_t> codes = stored_codes(*packed);
      for (size_t i = 0; i < codes.size(); ++i) {
        ASSERT_EQ(codes[i], static_cast<uint8_t>(q->codes[i] + bias))
            << scheme << " " << i;
      }
    }
  }
}

TEST_F(CudaLinear, ScalesAreAsSmallAsTheyCanBe) {
  const auto scale = [](const char* scheme) {
    return pack_linear(random_weight(scheme, 8, 256, 2), false)->scale;
  };
  EXPECT_EQ(scale("int4/g128@f16"), LinearScale::f16);
  EXPECT_EQ(scale("int4/g128@f32"), LinearScale::f32);
  EXPECT_EQ(scale("e2m1/g32@e8m0"), LinearScale::e8m0);
  EXPECT_EQ(scale("nf4/g64@f32"), LinearScale::f32);
}

TEST_F(CudaLinear, SaysWhatItCannotPack) {
  for (const char* scheme :
       {"uint4/g32@f16+m/g32@f16", "int4/g16@f16", "int4/g48@f16", "f16", "int8/c@f32"}) {
    const LinearWeight weight = random_weight(scheme, 16, 192, 1);
    const Result<LinearPacked> packed = pack_linear(weight, false);
    ASSERT_FALSE(packed.ok()) << scheme;
    EXPECT_EQ(packed.status().code(), StatusCode::unsupported);
    EXPECT_THAT(packed.status().message(), HasSubstr(scheme));
  }
  EXPECT_FALSE(pack_linear(random_weight("int8/g128@f16", 16, 256, 1), true).ok());
}

TEST_F(CudaLinear, PlansCoverKOnceAndFillTheGpu) {
  for (const int rows : {1, 128, 129, 4096, 8192, 28672}) {
    for (const int cols : {1, 512, 513, 4096, 14336, 81920}) {
      for (const LinearForm form : {LinearForm::int4, LinearForm::int8}) {
        const LinearPlan plan = plan_linear(form, rows, cols, 1, 132);
        ASSERT_GE(plan.stages_per_split * plan.splits, plan.stages);
        ASSERT_LT(plan.stages_per_split * (plan.splits - 1), plan.stages);
        ASSERT_GE(plan.stages * 8 * unit_columns(form), cols);
        // Two blocks a multiprocessor, twice, or all the stages there are.
        ASSERT_TRUE(plan.row_blocks * plan.stages <= 4 * 132 * 2 ||
                    plan.row_blocks * plan.splits >= 2 * 132)
            << rows << " " << cols;
      }
    }
  }
}

TEST_F(CudaLinear, GivesWhatTheDefinitionGives) {
  for (const LinearCase& c : linear_cases()) {
    SCOPED_TRACE(text(c));
    Result<LinearData> data = make_linear_data(c);
    ASSERT_TRUE(data.ok()) << data.status().message();
    EmulatedRunner runner;
    ASSERT_EQ(run_linear_case(runner, *data), "");
  }
}

TEST_F(CudaLinear, GivesTheSameBitsInAnyOrderOfThreadsAndBlocks) {
  const LinearCase cases[] = {{"uint4/g32@f16+z/g32@uint4", 130, 1600, 3},
                              {"nf4/g64@f32", 33, 1600, 9, Float16::bf16},
                              {"e4m3/r@f32", 130, 1000, 40},
                              {"int8/r@f32", 200, 1000, 5, Float16::f16, true}};
  for (const LinearCase& c : cases) {
    SCOPED_TRACE(text(c));
    Result<LinearData> data = make_linear_data(c);
    ASSERT_TRUE(data.ok()) << data.status().message();
    ASSERT_GT(data->plan.splits, 1);
    std::vector<uint8_t> first;
    for (const Order order : kOrders) {
      EmulatedRunner runner(order);
      ASSERT_EQ(run_linear_case(runner, *data), "");
      if (first.empty()) first = data->y;
      ASSERT_EQ(first, data->y);
    }
  }
}

TEST_F(CudaLinear, RefusesCallsThatCannotWork) {
  EmulatedRunner runner;
  LinearCall call;
  call.tokens = 65;
  const LinearPlan plan = plan_linear(LinearForm::int4, 8, 64, 64, 1);
  EXPECT_THAT(runner.run(call, plan).message(), HasSubstr("found 65"));
  call.tokens = 1;
  call.cols = 64;
  EXPECT_THAT(runner.run(call, plan).message(), HasSubstr("strides"));
  call.x_stride = 64;
  EXPECT_THAT(runner.run(call, plan).message(), HasSubstr("null"));
}

}  // namespace
}  // namespace nibble::cuda
