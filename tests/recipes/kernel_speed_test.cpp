// bench --kernels underneath: every case of the table at a size that takes no time.
// Nothing here asserts a speed.
#include "recipes/eval/kernel_speed.h"

#include <gmock/gmock.h>

#include <cmath>
#include <map>
#include <set>

#include "kernels/base/cancel.h"
#include "kernels/base/cpu.h"
#include "kernels/base/parallel.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

KernelSpeedOptions tiny() {
  KernelSpeedOptions options;
  options.rows = 33;  // a remainder of every vector
  options.cols = 256;
  options.working_set = 30'000;
  options.repeats = 2;
  options.threads = {1, 2};
  options.seconds = 1e-4;
  return options;
}

TEST(KernelSpeedTest, EveryCaseHasFiguresLimitsAndASmallError) {
  KernelSpeedOptions options = tiny();
  int64_t steps = 0;
  options.progress = [&](int64_t done, int64_t total, const std::string&) {
    EXPECT_LE(done, total);
    ++steps;
  };
  const int before = thread_count();
  const Result<KernelSpeeds> speeds = measure_kernels(options);
  ASSERT_TRUE(speeds.ok()) << speeds.status().message();
  EXPECT_EQ(thread_count(), before);
  EXPECT_GT(steps, 9);  // schemes
  std::set<std::string> schemes, seen;
  for (const KernelSpeed& s : speeds->cases) {
    const std::string name = cat(kernel_case_text(s), " on ", s.threads);
    EXPECT_TRUE(seen.insert(name).second) << name;
    schemes.insert(s.scheme);
    EXPECT_EQ(s.kernel.rfind("linear_" + s.activation, 0), 0u) << name << s.kernel;
    EXPECT_GT(s.bytes.median, 0) << name;
    EXPECT_TRUE(std::isfinite(s.operations.median)) << name;
    EXPECT_EQ(s.bytes.repeats, 2) << name;
    // Both are counted over the same seconds.
    EXPECT_NEAR(s.operations.median / s.bytes.median,
                2.0 * 33 * 256 * static_cast<double>(s.tokens) / s.weight_bytes,
                1e-6 * s.operations.median / s.bytes.median)
        << name;
    const bool decode = s.tokens <= kDecodeTokens;
    EXPECT_EQ(s.of_read.repeats, decode ? 2 : 0) << name;
    EXPECT_EQ(s.weights,
              decode ? static_cast<int64_t>(std::ceil(30'000 / s.weight_bytes)) : 1)
        << name;
    EXPECT_EQ(s.of_peak.median > 0, !s.instruction.empty()) << name;
    // Half a step of 127 in each of 256 activations, or f32 roundings.
    EXPECT_LT(s.error, s.activation == "s8"     ? 0.05
                       : s.activation == "bf16" ? 0.01
                                                : 1e-5)
        << name;
    EXPECT_GT(s.error, s.activation == "s8" ? 1e-4 : 0) << name;
  }
  EXPECT_EQ(schemes,
            (std::set<std::string>{"bf16", "int8n/r@f32", "int4/g128@f16", "int4/g32@f16",
                                   "nf4/f64@f32", "fp4/f64@f32", "e2m1/g32@e8m0",
                                   "e2m1/g16@e4m3/t@f32", "e4m3/r@f32"}));
  EXPECT_TRUE(seen.contains("int4/g32@f16 s8 8 on 2"));
  EXPECT_EQ(kernel_speed_rows(*speeds).size(), speeds->cases.size() + 1);
  EXPECT_GT(limit_rows(speeds->limits).size(), 4u);
  EXPECT_THAT(kernel_speed_heading(*speeds), HasSubstr("weights 33x256"));
}

TEST(KernelSpeedTest, BytesOfAWeightAreThePackedOnes) {
  KernelSpeedOptions options = tiny();
  options.threads = {1};
  options.repeats = 1;
  options.filter = "f32 1";
  const Result<KernelSpeeds> speeds = measure_kernels(options);
  ASSERT_TRUE(speeds.ok()) << speeds.status().message();
  std::map<std::string, double> bytes;
  for (const KernelSpeed& s : speeds->cases) bytes[s.scheme] = s.weight_bytes;
  const double codes4 = 33 * 128, codes8 = 33 * 256;
  EXPECT_EQ(bytes["bf16"], 2 * codes8);
  EXPECT_EQ(bytes["int8n/r@f32"], codes8 + 33 * 4);
  EXPECT_EQ(bytes["int4/g128@f16"], codes4 + 33 * 2 * 2);
  EXPECT_EQ(bytes["int4/g32@f16"], codes4 + 33 * 8 * 2);
  EXPECT_EQ(bytes["nf4/f64@f32"], codes4 + 33 * 4 * 4);
  EXPECT_EQ(bytes["e2m1/g32@e8m0"], codes4 + 33 * 8);
  EXPECT_EQ(bytes["e2m1/g16@e4m3/t@f32"], codes4 + 33 * 16 + 4);
  EXPECT_EQ(bytes["e4m3/r@f32"], codes8 + 33 * 4);
}

TEST(KernelSpeedTest, SaysWhichCasesWereDisturbed) {
  KernelSpeeds speeds{.rows = 2, .cols = 3};
  speeds.limits.machine.levels = {"avx2"};
  speeds.cases.push_back({.scheme = "bf16", .tokens = 1, .threads = 1});
  speeds.cases.push_back({.scheme = "bf16", .tokens = 1, .threads = 2, .others = 0.5});
  EXPECT_THAT(
      kernel_speed_heading(speeds),
      HasSubstr("note: 1 cases, marked *, were measured while other processes kept "
                "cores busy; do not trust them\n"));
  EXPECT_EQ(kernel_speed_rows(speeds)[1][3], "1");
  EXPECT_EQ(kernel_speed_rows(speeds)[2][3], "2 *");
  speeds.cases.pop_back();
  EXPECT_THAT(kernel_speed_heading(speeds), Not(HasSubstr("note")));
}

// A level that is forced is the level whose rows are timed.
TEST(KernelSpeedTest, FollowsTheForcedLevel) {
  for (const std::string& level : cpu_levels()) {
    ASSERT_TRUE(force_cpu(level).ok());
    KernelSpeedOptions options = tiny();
    options.threads = {1};
    options.repeats = 1;
    options.filter = "int4/g32@f16 s8 1";
    const Result<KernelSpeeds> speeds = measure_kernels(options);
    ASSERT_TRUE(speeds.ok()) << speeds.status().message();
    ASSERT_EQ(speeds->cases.size(), 1u);
    EXPECT_THAT(speeds->cases[0].kernel,
                HasSubstr(level == "avx512bf16" ? "__avx512vnni" : "__" + level));
    EXPECT_EQ(speeds->cases[0].instruction.empty(), level == "reference") << level;
  }
  ASSERT_TRUE(force_cpu("").ok());
}

TEST(KernelSpeedTest, RefusesWithReasons) {
  KernelSpeedOptions options = tiny();
  options.working_set = int64_t{1} << 50;
  const Status big = measure_kernels(options).status();
  EXPECT_EQ(big.code(), StatusCode::resource_exhausted);
  EXPECT_THAT(big.message(),
              HasSubstr("a third of the memory that is available, are required; found "
                        "1125899906842624; give less"));
  options = tiny();
  options.cols = 0;
  EXPECT_EQ(
      measure_kernels(options).status().message(),
      "[bench] --shape: 1 to 1048576 rows and columns are required; found 33x0; give "
      "ROWSxCOLS, as 4096x4096");
  options = tiny();
  options.filter = "int5";
  const Status none = measure_kernels(options).status();
  EXPECT_EQ(none.code(), StatusCode::invalid_argument);
  EXPECT_THAT(none.message(), HasSubstr("found \"int5\"; the cases are bf16 f32 1, "));
  options = tiny();
  request_cancel();
  EXPECT_EQ(measure_kernels(options).status().code(), StatusCode::cancelled);
  clear_cancel();
}

}  // namespace
}  // namespace nibble
