// bench --kernels underneath: every case of the table at a size that takes no time.
// Nothing here asserts a speed.
#include "recipes/eval/kernel_speed.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "kernels/base/cancel.h"
#include "kernels/base/cpu.h"
#include "kernels/base/parallel.h"
#include "kernels/packing/packed_tensor.h"
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
    EXPECT_TRUE(s.chosen) << name;
    // Float activations by digits take four products a weight, all else takes one.
    EXPECT_EQ(s.instruction_operations, s.instruction.empty()
                                            ? 0
                                            : (s.regime == "digits" ? 8.0 : 2.0) * 33 *
                                                  256 * static_cast<double>(s.tokens))
        << name;
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

// A limit of each regime by name, on any machine: nothing is run.
TEST(KernelSpeedTest, HoldsEachRowToTheInstructionThatItUses) {
  struct Case {
    const char* kernel;
    const char* scheme;
    int64_t tokens;
    const char* regime;
    const char* instruction;
    double operations;
  };
  const Case cases[] = {
      // Float activations: digits, then straight from the codes, then panels.
      {"linear_f32_int4g__avx512vnni", "int4/g128@f16", 1, "digits", "vpdpbusd zmm", 8},
      {"linear_f32_int4g__avx512vnni", "int4/g128@f16", 3, "digits", "vpdpbusd zmm", 8},
      {"linear_f32_int4g__avx512vnni", "int4/g128@f16", 4, "direct", "vfmadd231ps zmm",
       2},
      {"linear_f32_int4g__avx512vnni", "int4/g128@f16", 5, "panels", "vfmadd231ps zmm",
       2},
      {"linear_f32_int8__avx512vnni", "int8n/r@f32", 1, "digits", "vpdpbusd zmm", 8},
      {"linear_f32_table4__avx512vnni", "nf4/g64@f32", 1, "direct", "vfmadd231ps zmm", 2},
      {"linear_f32_int8__avxvnni", "int8n/r@f32", 1, "digits", "vpdpbusd ymm (VEX)", 8},
      {"linear_f32_int8__avxvnni", "int8n/r@f32", 2, "direct", "vfmadd231ps ymm", 2},
      {"linear_f32_int4g__avx2", "int4/g128@f16", 1, "direct", "vfmadd231ps ymm", 2},
      {"linear_f32_any__avx2", "int4/c@f32", 1, "panels", "vfmadd231ps ymm", 2},
      // Int8 activations.
      {"linear_s8_int4g__avx512vnni", "int4/g128@f16", 8, "direct", "vpdpbusd zmm", 2},
      {"linear_s8_int4g__avx512vnni", "int4/g128@f16", 9, "panels", "vpdpbusd zmm", 2},
      {"linear_s8_int8__avxvnni", "int8n/r@f32", 5, "panels", "vpdpbusd ymm (VEX)", 2},
      {"linear_s8_int8__avx2", "int8n/r@f32", 1, "direct",
       "vpmaddwd+vpaddd ymm", 2},
      // AMX serves prompts; a few tokens, and groups without a step, go by vectors.
      {"linear_s8_int4g__amx", "int4/g128@f16", 8, "direct", "vpdpbusd zmm", 2},
      {"linear_s8_int4g__amx", "int4/g128@f16", 9, "tiles", "tdpbssd tile", 2},
      {"linear_s8_int4g__amx", "int4/g16@f16", 9, "panels", "vpdpbusd zmm", 2},
      {"linear_s8_int8__amx", "int8n/r@f32", 512, "tiles", "tdpbssd tile", 2},
      {"linear_bf16_table4__amx", "nf4/g64@f32", 8, "direct", "vdpbf16ps zmm", 2},
      {"linear_bf16_table4__amx", "nf4/g64@f32", 9, "tiles", "tdpbf16ps tile", 2},
      {"linear_bf16_table4__amx", "nf4/g8@f32", 9, "panels", "vdpbf16ps zmm", 2},
      {"linear_bf16_table4__avx512bf16", "nf4/g64@f32", 64, "panels", "vdpbf16ps zmm", 2},
      {"linear_s8_any__reference", "int8n/r@f32", 1, "reference", nullptr, 0},
  };
  for (const Case& c : cases) {
    const std::string name = cat(c.kernel, " ", c.scheme, " ", c.tokens);
    const QuantScheme scheme = *parse_scheme(c.scheme);
    const auto kernel = std::find_if(
        linear_kernels().begin(), linear_kernels().end(),
        [&](const LinearKernel& row) { return std::string(c.kernel) == row.name; });
    ASSERT_NE(kernel, linear_kernels().end()) << name;
    ASSERT_TRUE(kernel->accepts(scheme, 256)) << name;
    CodedMatrix q{.scheme = scheme, .rows = 2, .cols = 256};
    q.codes.assign(512, 1);
    for (const ScaleLevel& level : scheme.scales) {
      const LevelShape shape = level_shape(level.block, 2, 256);
      q.scales.push_back({.rows = shape.rows, .cols = shape.cols});
      q.scales.back().values.assign(static_cast<size_t>(shape.rows * shape.cols), 1.0f);
    }
    const Result<PackedTensor> packed = pack(q, {2, 256});
    ASSERT_TRUE(packed.ok()) << name << packed.status().message();
    const Result<PreparedLinear> weight =
        prepare_linear(*kernel, *linear_weight(*packed));
    ASSERT_TRUE(weight.ok()) << name << weight.status().message();
    for (const LinearLimit& limit : {linear_limit(*weight, c.tokens),
                                     linear_limit(*kernel, scheme, 256, c.tokens)}) {
      EXPECT_STREQ(limit.regime, c.regime) << name;
      EXPECT_EQ(limit.operations, c.operations) << name;
      EXPECT_EQ(limit.peak == nullptr, c.instruction == nullptr) << name;
      if (limit.peak != nullptr) EXPECT_STREQ(limit.peak->name, c.instruction) << name;
    }
  }
  // Runs of columns under activation scales of their own leave no step to tiles.
  for (const LinearKernel& kernel : linear_kernels()) {
    if (std::string(kernel.name) != "linear_s8_int8__amx") continue;
    const QuantScheme scheme = *parse_scheme("int8n/r@f32");
    EXPECT_STREQ(linear_limit(kernel, scheme, 256, 9, {.group = 128}).regime, "panels");
    EXPECT_STREQ(linear_limit(kernel, scheme, 256, 9, {.group = 256}).regime, "tiles");
  }
}

// Every regime that a row could take, at every number of tokens, the chosen one first.
TEST(KernelSpeedTest, TheSweepTimesEachRegime) {
  KernelSpeedOptions options = tiny();
  options.threads = {2};
  options.repeats = 1;
  options.groups = {"sweep"};
  options.filter = " f32 ";
  const Result<KernelSpeeds> speeds = measure_kernels(options);
  ASSERT_TRUE(speeds.ok()) << speeds.status().message();
  std::map<std::string, std::set<int64_t>> chosen, others;  // of a scheme and regime
  for (const KernelSpeed& s : speeds->cases) {
    const std::string name = kernel_case_text(s);
    EXPECT_EQ(s.group, "sweep") << name;
    EXPECT_EQ(s.threads, 2) << name;
    EXPECT_EQ(s.seconds.repeats, 1) << name;
    EXPECT_GT(s.seconds.median, 0) << name;
    EXPECT_EQ(s.of_read.repeats, 1) << name;
    EXPECT_EQ(s.weights, static_cast<int64_t>(std::ceil(30'000 / s.weight_bytes)))
        << name;
    EXPECT_LT(s.error, 1e-5) << name;  // whatever the regime
    (s.chosen ? chosen : others)[s.scheme + " " + s.regime].insert(s.tokens);
    const LinearKernel* kernel =
        select_linear(*parse_scheme(s.scheme), options.cols, LinearActivation::f32);
    EXPECT_EQ(s.kernel, kernel->name) << name;
    EXPECT_EQ(
        s.chosen,
        linear_limit(*kernel, *parse_scheme(s.scheme), options.cols, s.tokens).regime ==
            s.regime)
        << name;
    EXPECT_EQ(name.ends_with(" by " + s.regime), !s.chosen) << name;
  }
  const std::set<int64_t> all = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64};
  for (const char* scheme : {"int4/g128@f16", "int8n/r@f32"}) {
    std::set<int64_t> seen;
    for (const auto& [name, tokens] : chosen) {
      if (name.starts_with(scheme)) seen.insert(tokens.begin(), tokens.end());
    }
    EXPECT_EQ(seen, all) << scheme;
    if (select_linear(*parse_scheme(scheme), options.cols, LinearActivation::f32)->isa ==
        nullptr) {
      continue;  // the definition has one way
    }
    const std::string panels = cat(scheme, " panels");
    EXPECT_TRUE(others[panels].contains(1)) << scheme;
    EXPECT_TRUE(chosen[panels].contains(64)) << scheme;
    EXPECT_FALSE(others[panels].contains(64)) << scheme;
  }
}

// What is not a linear layer: at every thread count, held to memory or to an instruction.
TEST(KernelSpeedTest, OtherGroupsHaveLimitsToo) {
  KernelSpeedOptions options = tiny();
  options.cols = 128;
  options.context = 300;
  options.working_set = 300'000;
  options.repeats = 1;
  options.groups = {"attention", "conv", "memory"};
  const Result<KernelSpeeds> speeds = measure_kernels(options);
  ASSERT_TRUE(speeds.ok()) << speeds.status().message();
  std::map<std::string, int> cases;
  for (const KernelSpeed& s : speeds->cases) {
    const std::string name = cat(kernel_case_text(s), " on ", s.threads);
    ++cases[s.group];
    EXPECT_FALSE(s.kernel.empty()) << name;
    EXPECT_GT(s.seconds.median, 0) << name;
    EXPECT_LT(s.error, 0) << name;  // not measured
    const bool from_memory =
        s.group == "memory" || (s.group == "attention" && s.tokens == 1);
    EXPECT_EQ(s.of_read.repeats, from_memory ? 1 : 0) << name;
    EXPECT_EQ(s.write.repeats, s.group == "memory" ? 1 : 0) << name;
    EXPECT_EQ(s.written_bytes > 0, s.group == "memory") << name;
    EXPECT_EQ(s.operations.repeats, s.group == "memory" ? 0 : 1) << name;
    EXPECT_GT(s.weight_bytes, 0) << name;
    if (from_memory) {
      EXPECT_EQ(s.weights,
                std::max(1.0, std::ceil(300'000 / (s.weight_bytes + s.written_bytes))))
          << name;
    }
  }
  EXPECT_EQ(cases["attention"], 2 * 13);
  EXPECT_EQ(cases["conv"], 2 * 16);
  EXPECT_EQ(cases["memory"], 2 * 13);
  EXPECT_EQ(kernel_speed_rows(*speeds).size(), speeds->cases.size() + 1);
}

TEST(KernelSpeedTest, BytesAndOperationsOfOtherGroups) {
  KernelSpeedOptions options = tiny();
  options.rows = 64;
  options.cols = 256;
  options.context = 512;
  options.repeats = 1;
  options.threads = {1};
  options.groups = {"attention", "conv", "memory"};
  std::map<std::string, KernelSpeed> cases;
  const Result<KernelSpeeds> speeds = measure_kernels(options);
  ASSERT_TRUE(speeds.ok()) << speeds.status().message();
  for (const KernelSpeed& s : speeds->cases) cases[kernel_case_text(s)] = s;
  const auto moved = [&](const char* name) {
    const KernelSpeed& s = cases.at(name);
    return std::pair<double, double>(s.weight_bytes, s.written_bytes);
  };
  const auto work = [&](const char* name) {
    const KernelSpeed& s = cases.at(name);
    return s.operations.median * s.seconds.median;
  };
  using Pair = std::pair<double, double>;
  const double values = 64 * 256, packed = values / 2 + 64 * 2 * 2;
  EXPECT_EQ(moved("memory quantize_rows f32 64"), Pair(4 * values, values));
  EXPECT_EQ(moved("memory quantize int4/g128@f16 f32 64"), Pair(4 * values, values));
  EXPECT_EQ(moved("memory pack int4/g128@f16 f32 64"), Pair(values, packed));
  EXPECT_EQ(moved("memory unpack int4/g128@f16 f32 64"), Pair(packed, values));
  EXPECT_EQ(moved("memory dequantize int4/g128@f16 f32 64"), Pair(packed, 4 * values));
  EXPECT_EQ(moved("memory rms_norm f32 64"), Pair(4 * values, 4 * values));
  EXPECT_EQ(moved("memory silu_mul f32 64"), Pair(8 * values, 4 * values));
  // 512 positions of 8 key heads of 128, keys and values.
  const double cached = 2.0 * 512 * 8 * 128;
  EXPECT_EQ(moved("attention f32 32 of 8 f32 1").first, 4 * cached);
  EXPECT_EQ(moved("attention f16 32 of 8 f32 1").first, 2 * cached);
  EXPECT_EQ(moved("attention int8 32 of 8 f32 1").first, cached + cached / 128 * 2);
  EXPECT_NEAR(work("attention int8 32 of 8 f32 1"), 4.0 * 512 * 32 * 128, 1);
  // 512 queries of 512 positions see 1 + 2 + ... + 512 of them.
  EXPECT_NEAR(work("attention f16 32 of 8 f32 512"), 4.0 * 512 * 513 / 2 * 32 * 128, 1e3);
  EXPECT_NEAR(work("conv 3x3 64x56x56 u8 1"), 2.0 * 64 * 56 * 56 * 64 * 9, 1e3);
  EXPECT_NEAR(work("conv 3x3 stride 2 128x56x56 u8 1"), 2.0 * 128 * 28 * 28 * 128 * 9,
              1e3);
  EXPECT_NEAR(work("conv 1x1 64x56x56 to 256 u8 1"), 2.0 * 256 * 56 * 56 * 64, 1e3);
  EXPECT_NEAR(work("conv depthwise 3x3 144x56x56 u8 1"), 2.0 * 144 * 56 * 56 * 9, 1e2);
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
  options.groups = {"linear", "gemm"};
  EXPECT_EQ(
      measure_kernels(options).status().message(),
      "[bench] --cases: some of linear, attention, conv, memory, sweep are required; "
      "found \"gemm\"; name groups with commas between");
  options = tiny();
  options.groups = {"attention"};
  options.context = int64_t{1} << 40;
  const Status long_cache = measure_kernels(options).status();
  EXPECT_EQ(long_cache.code(), StatusCode::resource_exhausted);
  EXPECT_THAT(long_cache.message(), HasSubstr("of 1099511627776 positions; give less"));
  options = tiny();
  request_cancel();
  EXPECT_EQ(measure_kernels(options).status().code(), StatusCode::cancelled);
  clear_cancel();
}

}  // namespace
}  // namespace nibble
