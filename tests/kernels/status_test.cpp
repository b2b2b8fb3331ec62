#include "kernels/base/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <set>
#include <string>

#include "kernels/base/cancel.h"
#include "kernels/base/cpu.h"
#include "kernels/base/tensor.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

TEST(Status, DefaultIsOk) {
  EXPECT_TRUE(Status().ok());
  EXPECT_TRUE(ok_status().ok());
  EXPECT_EQ(Status().message(), "");
}

TEST(Status, ErrorJoinsItsParts) {
  const Status status =
      error(StatusCode::data_loss, "[who] row ", 3, " of ", 7.5, ": ", 'x');
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::data_loss);
  EXPECT_EQ(status.message(), "[who] row 3 of 7.5: x");
}

TEST(Status, EveryCodeHasItsOwnName) {
  std::set<std::string> names;
  for (int code = 0; code <= static_cast<int>(StatusCode::internal); ++code) {
    names.insert(status_code_name(static_cast<StatusCode>(code)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(StatusCode::internal) + 1);
  EXPECT_EQ(names.count("unknown"), 0u);
  EXPECT_STREQ(status_code_name(StatusCode::data_loss), "data_loss");
}

TEST(Result, HoldsAValueOrAnError) {
  const Result<int> value = 4;
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(*value, 4);
  const Result<int> failed = error(StatusCode::not_found, "nothing here");
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.status().code(), StatusCode::not_found);
}

TEST(Result, MadeOfOkIsOurMistake) {
  const Result<int> wrong = ok_status();
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.status().code(), StatusCode::internal);
}

Result<std::unique_ptr<int>> make(int n) {
  if (n < 0) return error(StatusCode::out_of_range, "negative");
  return std::make_unique<int>(n);
}

Result<int> sum(int a, int b) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<int> x, make(a));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<int> y, make(b));
  return *x + *y;
}

TEST(Result, AssignOrReturnPassesErrorsOn) {
  EXPECT_EQ(*sum(2, 3), 5);
  EXPECT_EQ(sum(2, -3).status().message(), "negative");
}

TEST(Cancel, IsSeenUntilCleared) {
  clear_cancel();
  EXPECT_TRUE(check_cancelled("quantize").ok());
  request_cancel();
  const Status status = check_cancelled("quantize");
  clear_cancel();
  EXPECT_EQ(status.code(), StatusCode::cancelled);
  EXPECT_EQ(status.message(), "[quantize] interrupted; nothing was written");
  EXPECT_FALSE(cancel_requested());
}

TEST(Cpu, EveryListedLevelCanBeForced) {
  const std::vector<std::string> levels = cpu_levels();
  ASSERT_FALSE(levels.empty());
  EXPECT_EQ(levels.back(), "reference");
  for (const std::string& level : levels) {
    EXPECT_TRUE(force_cpu(level).ok()) << level;
    EXPECT_EQ(usable_cpu_flags() & ~cpu_info().flags, 0u);
    if (level == "reference") {
      EXPECT_EQ(usable_cpu_flags(), 0u);
    }
    if (level == "avxvnni") {
      EXPECT_EQ(usable_cpu_flags(), static_cast<uint32_t>(kCpuAvx2 | kCpuAvxVnni));
    }
    if (level == "avx2") {
      EXPECT_EQ(usable_cpu_flags(), static_cast<uint32_t>(kCpuAvx2));
    }
  }
  EXPECT_TRUE(force_cpu("").ok());
}

TEST(Cpu, AnUnknownLevelIsRefusedAndChangesNothing) {
  const uint32_t before = usable_cpu_flags();
  const Status status = force_cpu("sse9");
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_EQ(status.message(),
            "[cpu] level: one of amx, avx512bf16, avx512vnni, avxvnni, avx2, reference; "
            "found \"sse9\"; use one of them, or leave it out to detect");
  EXPECT_EQ(usable_cpu_flags(), before);
}

TEST(Cpu, ALevelThatThisCpuLacksIsRefused) {
  if ((cpu_info().flags & kCpuAmxInt8) != 0) GTEST_SKIP() << "this CPU has every level";
  const Status status = force_cpu("amx");
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_THAT(status.message(), HasSubstr("lacks"));
}

TEST(Tensor, NamesOfElementTypesRoundTrip) {
  for (int i = 0; i <= static_cast<int>(DType::f8_e8m0); ++i) {
    const DType dtype = static_cast<DType>(i);
    const Result<DType> again = dtype_from_name(dtype_name(dtype));
    ASSERT_TRUE(again.ok()) << dtype_name(dtype);
    EXPECT_EQ(*again, dtype);
    EXPECT_GE(dtype_bytes(dtype), 1);
  }
  EXPECT_THAT(dtype_from_name("F7").status().message(), HasSubstr("found \"F7\""));
}

TEST(Tensor, ReadsEveryFloatType) {
  const std::vector<float> values = {0.0f, 1.0f, -2.5f, 0.125f};
  const Tensor f32 = make_tensor({2, 2}, values);
  EXPECT_EQ(*to_float(f32), values);
  EXPECT_EQ(f32.rows(), 2);
  EXPECT_EQ(f32.cols(), 2);

  const std::vector<double> doubles(values.begin(), values.end());
  Tensor f64{DType::f64, {4}, Bytes::copy_of(doubles.data(), 32)};
  EXPECT_EQ(*to_float(f64), values);

  const std::vector<uint16_t> halves = {0x0000, 0x3c00, 0xc100, 0x3000};
  Tensor f16{DType::f16, {1, 4}, Bytes::copy_of(halves.data(), 8)};
  EXPECT_EQ(*to_float(f16), values);

  const std::vector<uint16_t> brains = {0x0000, 0x3f80, 0xc020, 0x3e00};
  Tensor bf16{DType::bf16, {4, 1}, Bytes::copy_of(brains.data(), 8)};
  EXPECT_EQ(*to_float(bf16), values);
}

TEST(Tensor, ReadsFromAnUnalignedPlace) {
  std::byte* data = nullptr;
  const Bytes buffer = Bytes::allocate(9, &data);
  const float values[2] = {1.5f, -3.0f};
  std::memcpy(data + 1, values, 8);
  const Tensor tensor{DType::f32, {2}, buffer.slice(1, 8)};
  EXPECT_EQ(*to_float(tensor), (std::vector<float>{1.5f, -3.0f}));
}

TEST(Tensor, RefusesWhatIsNotAFloat) {
  const std::vector<int32_t> ids = {1, 2};
  const Tensor tensor = make_tensor({2}, ids);
  EXPECT_EQ(to_float(tensor).status().code(), StatusCode::unsupported);
  EXPECT_EQ(to_float(tensor).status().message(),
            "[tensor] to_float: F16, BF16, F32 or F64; found I32 [2]");
  EXPECT_EQ(*to_int32(tensor), ids);
}

TEST(Tensor, RefusesTooFewBytes) {
  const Tensor tensor{DType::f32, {2, 3}, Bytes::copy_of("12345678", 8)};
  EXPECT_EQ(to_float(tensor).status().message(),
            "[tensor] to_float: F32 [2, 3] takes 24 bytes; found 8");
}

TEST(Tensor, LongIntegersMustFit) {
  const std::vector<int64_t> ids = {7, int64_t{1} << 31};
  const Tensor tensor{DType::i64, {2}, Bytes::copy_of(ids.data(), 16)};
  EXPECT_EQ(to_int32(tensor).status().message(),
            "[tensor] to_int32: element 1 must fit in 32 bits; found 2147483648");
}

TEST(Bytes, BuffersAreAlignedAndShared) {
  std::byte* data = nullptr;
  Bytes part;
  {
    const Bytes whole = Bytes::allocate(100, &data);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(whole.data()) % 64, 0u);
    data[99] = std::byte{7};
    part = whole.slice(98, 2);
  }
  EXPECT_EQ(part.data()[1], std::byte{7});  // the slice keeps the buffer
}

}  // namespace
}  // namespace nibble
