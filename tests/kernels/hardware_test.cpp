// The probe: its table and arithmetic. Nothing here asserts a speed.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "kernels/base/cpu.h"
#include "kernels/base/parallel.h"
#include "kernels/hardware/machine.h"
#include "kernels/hardware/pin.h"
#include "kernels/hardware/probe.h"
#include "kernels/hardware/probe_isa.h"
#include "kernels/hardware/roofline.h"
#include "kernels/ops/linear/linear.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {

void PrintTo(const PeakRow& row, std::ostream* out) { *out << row.name; }

namespace {

constexpr double kShort = 1e-4;  // seconds of a timing

bool is_rate(double rate) { return std::isfinite(rate) && rate > 0; }

TEST(MachineTest, NamesItself) {
  const Machine machine = this_machine();
  EXPECT_FALSE(machine.make.empty());
  EXPECT_EQ(machine.model, cpu_info().model);
  EXPECT_EQ(machine.levels, cpu_levels());
  EXPECT_GE(machine.cpus, 1);
  EXPECT_GT(machine.available, 0);
  EXPECT_NE(machine.text().find(machine.model), std::string::npos);
  EXPECT_TRUE((std::set<std::string>{"always", "madvise", "never", "unknown"}.contains(
      machine.huge_pages)))
      << machine.huge_pages;
}

TEST(MachineTest, DesignsThatABrandNameHides) {
  EXPECT_EQ(design_of("AMD", 25, 1), "Zen 3");
  EXPECT_EQ(design_of("AMD", 25, 17), "Zen 4");
  EXPECT_EQ(design_of("AMD", 25, 0xa0), "Zen 4");
  EXPECT_EQ(design_of("AMD", 26, 2), "Zen 5");
  EXPECT_EQ(design_of("Intel", 6, 143), "Sapphire Rapids");
  EXPECT_EQ(design_of("Intel", 26, 2), "");
  EXPECT_EQ(design_of("AMD", 99, 1), "");
  Machine machine;
  machine.make = "AMD";
  machine.model = "AMD EPYC";
  machine.family = 26;
  machine.model_number = 2;
  EXPECT_EQ(machine.text(), "AMD EPYC, Zen 5 (family 26, model 2)");
  machine.family = 99;
  EXPECT_EQ(machine.text(), "AMD EPYC (family 99, model 2)");
}

// One thread's seconds are its own: sleep is none of them. Several wait by the clock.
TEST(MachineTest, WorkIsTimedByWhoDoesIt) {
  const double own = work_seconds(1), clock = work_seconds(2);
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_LT(work_seconds(1) - own, 0.02);
  EXPECT_GE(work_seconds(2) - clock, 0.03);
}

void expect_rising(const std::vector<Cache>& caches) {
  for (size_t i = 0; i < caches.size(); ++i) {
    EXPECT_GT(caches[i].bytes, i == 0 ? 0 : caches[i - 1].bytes);
    EXPECT_GT(caches[i].level, i == 0 ? 0 : caches[i - 1].level);
  }
}

TEST(MachineTest, CachesRise) {
  const Machine machine = this_machine();
  ASSERT_FALSE(machine.caches.empty());
  expect_rising(machine.caches);
  expect_rising(caches_of_cpuid());
  expect_rising(caches_of_sysconf());
  EXPECT_EQ(machine.largest_cache(), machine.caches.back().bytes);
  EXPECT_EQ(machine.cache_bytes(1), machine.caches.front().bytes);
  EXPECT_EQ(machine.cache_bytes(9), 0);
}

// What sysfs and cpuid say of the first level is the same piece of silicon.
TEST(MachineTest, SourcesAgreeOnTheFirstLevel) {
  const auto sysfs = caches_of_sysfs("/sys/devices/system/cpu/cpu0");
  const auto cpuid = caches_of_cpuid();
  if (sysfs.empty() || cpuid.empty()) GTEST_SKIP() << "one of the two is not given here";
  EXPECT_EQ(sysfs.front().bytes, cpuid.front().bytes);
  EXPECT_EQ(sysfs.front().line, cpuid.front().line);
}

TEST(MachineTest, ReadsSysfs) {
  const TemporaryDirectory directory;
  const auto write = [&](const std::string& index, const std::string& name,
                         const std::string& text) {
    const auto folder = directory.path() / "cache" / index;
    std::filesystem::create_directories(folder);
    std::ofstream(folder / name) << text << "\n";
  };
  // In no order, with the instruction cache between.
  const char* const rows[][6] = {{"index0", "3", "Unified", "480M", "0-1,4-7", "64"},
                                 {"index1", "1", "Data", "48K", "0", "64"},
                                 {"index2", "1", "Instruction", "32K", "0", "64"},
                                 {"index3", "2", "Unified", "2048K", "0,4", "64"}};
  for (const auto& row : rows) {
    write(row[0], "level", row[1]);
    write(row[0], "type", row[2]);
    write(row[0], "size", row[3]);
    write(row[0], "shared_cpu_list", row[4]);
    write(row[0], "coherency_line_size", row[5]);
  }
  const std::vector<Cache> expected = {
      {1, 48 << 10, 1, 64}, {2, 2 << 20, 2, 64}, {3, 480 << 20, 6, 64}};
  EXPECT_EQ(caches_of_sysfs(directory.path()), expected);
  EXPECT_TRUE(caches_of_sysfs(directory.path() / "absent").empty());
}

TEST(MachineTest, HugePageState) {
  EXPECT_EQ(chosen_of("always [madvise] never"), "madvise");
  EXPECT_EQ(chosen_of("[always] madvise never"), "always");
  EXPECT_EQ(chosen_of(""), "unknown");
}

TEST(MachineTest, CountsCpuTime) {
  const double busy = busy_seconds(), own = own_seconds();
  EXPECT_GT(busy, 0);
  EXPECT_GT(own, 0);
  const PeakRow* const row = best_peak(Numbers::f32, cpu_info().flags);
  if (row == nullptr) GTEST_SKIP() << "nothing to spend time with";
  ASSERT_TRUE(peak(*row, 1, 0.03).ok());
  EXPECT_GT(own_seconds(), own);
  EXPECT_GE(busy_seconds(), busy);  // in ticks of 10 ms
}

TEST(MachineTest, WorkingSetIsCutToMemoryAndSaysSo) {
  Machine machine;
  machine.caches = {{1, 32 << 10, 1, 64}, {3, int64_t{480} << 20, 2, 64}};
  machine.available = int64_t{64} << 30;
  std::string note;
  EXPECT_EQ(memory_working_set(machine, &note), int64_t{1920} << 20);
  EXPECT_EQ(note, "");
  machine.caches.pop_back();
  EXPECT_EQ(memory_working_set(machine, &note), int64_t{1} << 30);
  machine.available = int64_t{300} << 20;
  EXPECT_EQ(memory_working_set(machine, &note), int64_t{100} << 20);
  EXPECT_EQ(
      note,
      "the memory's working set is 100 MiB in place of 1024: 300 MiB are available; "
      "caches of 0 MiB may serve a part of it");
}

cpu_set_t affinity() {
  cpu_set_t set;
  EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  return set;
}

TEST(PinTest, BindsToOneCpuAndLetsGo) {
  const cpu_set_t before = affinity();
  for (const int index : {0, 1, 1000}) {
    const Pinned here(index);
    const cpu_set_t now = affinity();
    EXPECT_EQ(CPU_COUNT(&now), 1);
    EXPECT_TRUE(CPU_ISSET(sched_getcpu(), &now));
    EXPECT_TRUE(CPU_ISSET(sched_getcpu(), &before));
  }
  const cpu_set_t after = affinity();
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

TEST(PinTest, DifferentIndicesAreDifferentCpus) {
  const int cpus = this_machine().cpus;
  std::set<int> seen;
  for (int i = 0; i < cpus; ++i) {
    const Pinned here(i);
    seen.insert(sched_getcpu());
  }
  EXPECT_EQ(static_cast<int>(seen.size()), cpus);
}

TEST(PinTest, TimingsLeaveTheCallerUnbound) {
  const cpu_set_t before = affinity();
  Result<ReadBuffer> buffer = ReadBuffer::create(4096);
  ASSERT_TRUE(buffer.ok());
  ASSERT_TRUE(read_bandwidth(*buffer, 2, 0, kShort).ok());
  const cpu_set_t after = affinity();
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

class PeakTest : public ::testing::TestWithParam<PeakRow> {};

// What the accumulators hold is the number of operations: they were done, and counted
// right.
TEST_P(PeakTest, DoesTheOperationsItCounts) {
  const PeakRow& row = GetParam();
  const Status runs = can_run(row);
  if (!runs.ok()) GTEST_SKIP() << runs.message();
  for (const int64_t rounds : {1, 7, 15}) {
    EXPECT_EQ(row.run(rounds) * row.weight(), rounds * row.operations) << rounds;
  }
}

TEST_P(PeakTest, HasARate) {
  const PeakRow& row = GetParam();
  const Result<double> rate = peak(row, 1, kShort);
  if (can_run(row).ok()) {
    ASSERT_TRUE(rate.ok()) << rate.status().message();
    EXPECT_TRUE(is_rate(*rate)) << *rate;
    const Result<double> two = peak(row, 2, kShort);
    ASSERT_TRUE(two.ok());
    EXPECT_TRUE(is_rate(*two)) << *two;
  } else {
    EXPECT_EQ(rate.status().code(), StatusCode::unsupported);
  }
}

TEST_P(PeakTest, RefusalSaysWhy) {
  const PeakRow& row = GetParam();
  ASSERT_NE(row.flags, 0u);
  const Status refused = can_run(row, 0);
  EXPECT_EQ(refused.code(), StatusCode::unsupported);
  EXPECT_EQ(refused.message(), cat("[probe] ", row.name, ": ", cpu_flag_names(row.flags),
                                   " is required; this CPU (", cpu_info().model,
                                   ") lacks ", cpu_flag_names(row.flags)));
  EXPECT_FALSE(cpu_flag_names(row.flags).empty());
}

INSTANTIATE_TEST_SUITE_P(Rows, PeakTest, ::testing::ValuesIn(peak_rows()),
                         [](const ::testing::TestParamInfo<PeakRow>& row) {
                           std::string name;
                           for (const char c : std::string(row.param.name)) {
                             name +=
                                 std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           }
                           return name;
                         });

TEST(PeaksTest, NamesAreDifferent) {
  std::set<std::string> names;
  for (const PeakRow& row : peak_rows()) EXPECT_TRUE(names.insert(row.name).second);
}

// Every instruction set of the kernel table has a peak to be measured against.
TEST(PeaksTest, CoverTheKernelRows) {
  for (const LinearKernel& kernel : linear_kernels()) {
    if (kernel.flags == 0) continue;  // the definition is not for speed
    const Numbers numbers = kernel.activation == LinearActivation::s8     ? Numbers::int8
                            : kernel.activation == LinearActivation::bf16 ? Numbers::bf16
                                                                          : Numbers::f32;
    const PeakRow* const row = best_peak(numbers, kernel.flags);
    ASSERT_NE(row, nullptr) << kernel.name;
    EXPECT_EQ(row->flags & ~kernel.flags, 0u) << kernel.name << " " << row->name;
    EXPECT_NE(best_peak(Numbers::lookup, kernel.flags), nullptr) << kernel.name;
  }
}

TEST(PeaksTest, TheBestOfALevel) {
  const uint32_t avx512 = kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni;
  const auto name = [](Numbers numbers, uint32_t flags) {
    const PeakRow* const row = best_peak(numbers, flags);
    return std::string(row != nullptr ? row->name : "none");
  };
  EXPECT_EQ(name(Numbers::int8, kCpuAvx2), "vpmaddwd+vpaddd ymm");
  EXPECT_EQ(name(Numbers::int8, kCpuAvx2 | kCpuAvxVnni), "vpdpbusd ymm (VEX)");
  EXPECT_EQ(name(Numbers::int8, avx512 | kCpuAvxVnni), "vpdpbusd zmm");
  EXPECT_EQ(name(Numbers::int8, avx512 | kCpuAmxInt8), "tdpbssd tile");
  EXPECT_EQ(name(Numbers::f32, kCpuAvx2), "vfmadd231ps ymm");
  EXPECT_EQ(name(Numbers::f32, avx512), "vfmadd231ps zmm");
  EXPECT_EQ(name(Numbers::bf16, avx512 | kCpuAvx512Bf16), "vdpbf16ps zmm");
  EXPECT_EQ(name(Numbers::bf16, avx512), "none");
  EXPECT_EQ(name(Numbers::int8, 0), "none");
}

TEST(PeaksTest, RefusesNoThreads) {
  const Result<double> rate = peak(peak_rows().front(), 0);
  EXPECT_EQ(rate.status().code(), StatusCode::invalid_argument);
  EXPECT_EQ(rate.status().message(),
            "[probe] tdpbssd tile: at least one thread is required; found 0");
}

// The read is real: every word once a pass, at any number of threads and any reader.
TEST(ReadTest, SumsEveryWord) {
  for (const int64_t bytes : {int64_t{1} << 20, int64_t{72} << 20}) {
    Result<ReadBuffer> buffer = ReadBuffer::create(bytes);
    ASSERT_TRUE(buffer.ok()) << buffer.status().message();
    ASSERT_GE(buffer->bytes(), bytes);
    const int64_t n = buffer->bytes() / 8;
    EXPECT_EQ(buffer->words()[n - 1], static_cast<uint64_t>(n - 1));
    for (const int threads : {1, 2}) {
      const Result<uint64_t> sum = read_sum(*buffer, threads);
      ASSERT_TRUE(sum.ok()) << sum.status().message();
      EXPECT_EQ(*sum, buffer->expected_sum()) << threads << " threads";
      const Result<uint64_t> twice = read_sum(*buffer, threads, 0, 2);
      ASSERT_TRUE(twice.ok());
      EXPECT_EQ(*twice, 2 * buffer->expected_sum()) << threads << " threads";
    }
  }
}

TEST(ReadTest, ReadersOfEachIsaAgree) {
  Result<ReadBuffer> buffer = ReadBuffer::create(64 << 10);
  ASSERT_TRUE(buffer.ok());
  const int64_t n = buffer->bytes() / 8;
  const uint64_t expected = 3 * buffer->expected_sum();
  EXPECT_EQ(read_words(buffer->words(), n, 3), expected);
  const uint32_t flags = cpu_info().flags;
  if ((flags & kCpuAvx2) != 0) {
    EXPECT_EQ(avx2::read_words(buffer->words(), n, 3), expected);
  }
  if ((flags & kCpuAvx512) != 0 && (flags & kCpuAvx512Vnni) != 0) {
    EXPECT_EQ(avx512vnni::read_words(buffer->words(), n, 3), expected);
  }
}

TEST(ReadTest, HasARate) {
  Result<ReadBuffer> buffer = ReadBuffer::create(4 << 20);
  ASSERT_TRUE(buffer.ok());
  for (const int threads : {1, 2, 3}) {
    for (const int64_t bytes : {int64_t{16} << 10, int64_t{0}}) {
      const Result<double> rate = read_bandwidth(*buffer, threads, bytes, kShort);
      ASSERT_TRUE(rate.ok()) << rate.status().message();
      EXPECT_TRUE(is_rate(*rate)) << *rate;
    }
  }
}

TEST(ReadTest, RefusesWithReasons) {
  EXPECT_EQ(ReadBuffer::create(0).status().message(),
            "[probe] read buffer: at least one byte is required; found 0");
  const Result<ReadBuffer> none = ReadBuffer::create(int64_t{1} << 60);
  EXPECT_EQ(none.status().code(), StatusCode::resource_exhausted);
  EXPECT_EQ(none.status().message(),
            "[probe] read buffer: 1152921504606846976 bytes are required; the system has "
            "not got them; ask for a smaller working set");
  Result<ReadBuffer> buffer = ReadBuffer::create(4096);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ(read_bandwidth(*buffer, 0).status().message(),
            "[probe] read: at least one thread is required; found 0");
  EXPECT_EQ(read_bandwidth(*buffer, 1, 8192).status().message(),
            "[probe] read: at most the buffer's 4096 bytes, and 512 a thread, are "
            "required; found 8192 bytes and 1 threads");
}

TEST(ProbeTest, MeasuresEveryLevelAndRow) {
  const Result<Probe> result = probe(
      {.threads = {1, 2}, .repeats = 2, .seconds = kShort, .memory_bytes = 8 << 20});
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_EQ(result->note, "");
  EXPECT_EQ(result->bandwidths.size(), 2 * (result->machine.caches.size() + 1));
  for (const BandwidthLimit& limit : result->bandwidths) {
    EXPECT_TRUE(is_rate(limit.rate.median)) << limit.level;
    EXPECT_LE(limit.rate.low, limit.rate.median);
    EXPECT_LE(limit.rate.median, limit.rate.high);
    EXPECT_EQ(limit.rate.repeats, 2);
    EXPECT_GT(limit.bytes, 0) << limit.level;
  }
  EXPECT_EQ(result->bandwidths.back().level, "memory");
  ASSERT_EQ(result->peaks.size(), 2 * peak_rows().size());
  for (const PeakLimit& limit : result->peaks) {
    EXPECT_EQ(limit.refused.empty(), can_run(*limit.row).ok()) << limit.row->name;
    EXPECT_EQ(limit.rate.repeats, limit.refused.empty() ? 2 : 0) << limit.row->name;
    if (!limit.refused.empty()) continue;
    EXPECT_TRUE(is_rate(limit.rate.median)) << limit.row->name;
  }
}

TEST(RooflineTest, TheSlowerOfTheTwoBinds) {
  const Roofline decode = roofline(10e9, 4e9, 20e9, 100e9);
  EXPECT_DOUBLE_EQ(decode.memory_seconds, 0.5);
  EXPECT_DOUBLE_EQ(decode.compute_seconds, 0.04);
  EXPECT_DOUBLE_EQ(decode.seconds(), 0.5);
  EXPECT_TRUE(decode.memory_binds());
  const Roofline prefill = roofline(10e9, 800e9, 20e9, 100e9);
  EXPECT_DOUBLE_EQ(prefill.seconds(), 8);
  EXPECT_FALSE(prefill.memory_binds());
}

TEST(RateTest, MedianAndQuartiles) {
  const Rate rate = rate_of({5, 1, 4, 2, 3});
  EXPECT_EQ(rate.median, 3);
  EXPECT_EQ(rate.low, 2);
  EXPECT_EQ(rate.high, 4);
  EXPECT_EQ(rate.repeats, 5);
  EXPECT_EQ(rate_of({4, 1, 2, 3}).median, 2.5);
  EXPECT_EQ(rate_of({}).repeats, 0);
}

}  // namespace
}  // namespace nibble
