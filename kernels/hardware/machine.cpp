#include "kernels/hardware/machine.h"

#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>

#include "kernels/base/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace nibble {
namespace {

namespace fs = std::filesystem;

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// "1024K" -> 1048576; 0 where there is no number.
int64_t size_of(const std::string& text) {
  char* end = nullptr;
  const int64_t n = std::strtoll(text.c_str(), &end, 10);
  if (*end == 'K') return n << 10;
  if (*end == 'M') return n << 20;
  return n;
}

// "0-1,4" -> 3
int count_of_list(const std::string& text) {
  int count = 0;
  std::istringstream ranges(text);
  for (std::string range; std::getline(ranges, range, ',');) {
    const size_t dash = range.find('-');
    const int first = std::atoi(range.c_str());
    const int last =
        dash == std::string::npos ? first : std::atoi(range.c_str() + dash + 1);
    count += last - first + 1;
  }
  return count;
}

std::vector<Cache> sorted(std::vector<Cache> caches) {
  std::sort(caches.begin(), caches.end(),
            [](const Cache& a, const Cache& b) { return a.level < b.level; });
  return caches;
}

std::string make_of_cpuid() {
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return {};
  std::string name;
  for (const uint32_t word : {b, d, c}) {
    for (int shift = 0; shift < 32; shift += 8) {
      name += static_cast<char>((word >> shift) & 255);
    }
  }
  if (name == "AuthenticAMD") return "AMD";
  if (name == "GenuineIntel") return "Intel";
  return name;
#else
  return {};
#endif
}

// "cpu family", "model" of /proc/cpuinfo.
int cpuinfo_number(const std::string& key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    std::string name = line.substr(0, colon);
    while (!name.empty() && (name.back() == '\t' || name.back() == ' ')) name.pop_back();
    if (name == key) return std::atoi(line.c_str() + colon + 1);
  }
  return 0;
}

int usable_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());
}

int64_t memory_available() {
  int64_t available = 0;
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("MemAvailable:", 0) != 0) continue;
    available = std::atoll(line.c_str() + line.find(':') + 1) * 1024;
  }
  if (available == 0) {
    available = static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  }
  // Control groups, version 2 and 1: a container's own limit.
  const char* const kGroups[][2] = {
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes",
       "/sys/fs/cgroup/memory/memory.usage_in_bytes"}};
  for (const auto& group : kGroups) {
    const int64_t limit = size_of(first_line(group[0]));  // "max": 0
    if (limit > 0) {
      available = std::min(available,
                           std::max<int64_t>(limit - size_of(first_line(group[1])), 0));
    }
  }
  return available;
}

}  // namespace

std::vector<Cache> caches_of_sysfs(const fs::path& cpu) {
  std::vector<Cache> caches;
  for (int i = 0;; ++i) {
    const fs::path index = cpu / "cache" / ("index" + std::to_string(i));
    std::error_code failed;
    if (!fs::exists(index, failed)) break;
    if (first_line(index / "type") == "Instruction") continue;
    const Cache cache{
        .level = std::atoi(first_line(index / "level").c_str()),
        .bytes = size_of(first_line(index / "size")),
        .shared_by = count_of_list(first_line(index / "shared_cpu_list")),
        .line = std::atoi(first_line(index / "coherency_line_size").c_str())};
    if (cache.level > 0 && cache.bytes > 0) caches.push_back(cache);
  }
  return sorted(std::move(caches));
}

std::vector<Cache> caches_of_cpuid() {
  std::vector<Cache> caches;
#if defined(__x86_64__)
  // Deterministic cache parameters: leaf 4 of Intel, 0x8000001d of AMD, laid out alike.
  const uint32_t leaf = make_of_cpuid() == "AMD" ? 0x8000001du : 4u;
  for (uint32_t i = 0; i < 16; ++i) {
    uint32_t a, b, c, d;
    if (!__get_cpuid_count(leaf, i, &a, &b, &c, &d)) break;
    const uint32_t type = a & 31;  // 1 data, 2 instruction, 3 unified
    if (type == 0) break;
    if (type == 2) continue;
    const int64_t line = (b & 0xfff) + 1, partitions = ((b >> 12) & 0x3ff) + 1;
    const int64_t ways = (b >> 22) + 1, sets = static_cast<int64_t>(c) + 1;
    caches.push_back({.level = static_cast<int>((a >> 5) & 7),
                      .bytes = line * partitions * ways * sets,
                      .shared_by = static_cast<int>((a >> 14) & 0xfff) + 1,
                      .line = static_cast<int>(line)});
  }
#endif
  return sorted(std::move(caches));
}

std::vector<Cache> caches_of_sysconf() {
  std::vector<Cache> caches;
  const int kNames[][2] = {{_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL1_DCACHE_LINESIZE},
                           {_SC_LEVEL2_CACHE_SIZE, _SC_LEVEL2_CACHE_LINESIZE},
                           {_SC_LEVEL3_CACHE_SIZE, _SC_LEVEL3_CACHE_LINESIZE}};
  for (int i = 0; i < 3; ++i) {
    const long bytes = sysconf(kNames[i][0]), line = sysconf(kNames[i][1]);
    if (bytes <= 0) continue;
    caches.push_back(
        {.level = i + 1, .bytes = bytes, .line = line > 0 ? static_cast<int>(line) : 0});
  }
  return caches;
}

std::string chosen_of(const std::string& text) {
  const size_t open = text.find('['), close = text.find(']', open);
  if (open == std::string::npos || close == std::string::npos) return "unknown";
  return text.substr(open + 1, close - open - 1);
}

std::string design_of(const std::string& make, int family, int model) {
  // A brand name says little ("AMD EPYC"): these are the designs that differ in what
  // kernels see. AMD's and Intel's own lists of families and models.
  struct Design {
    const char* make;
    int family, first, last;
    const char* name;
  };
  constexpr Design kDesigns[] = {
      {"AMD", 23, 0x00, 0x2f, "Zen"},           {"AMD", 23, 0x30, 0xff, "Zen 2"},
      {"AMD", 25, 0x00, 0x0f, "Zen 3"},         {"AMD", 25, 0x10, 0x1f, "Zen 4"},
      {"AMD", 25, 0x20, 0x5f, "Zen 3"},         {"AMD", 25, 0x60, 0x7f, "Zen 4"},
      {"AMD", 25, 0xa0, 0xaf, "Zen 4"},         {"AMD", 26, 0x00, 0x2f, "Zen 5"},
      {"AMD", 26, 0x40, 0x4f, "Zen 5"},         {"AMD", 26, 0x60, 0x7f, "Zen 5"},
      {"Intel", 6, 106, 106, "Ice Lake"},       {"Intel", 6, 143, 143, "Sapphire Rapids"},
      {"Intel", 6, 173, 174, "Granite Rapids"}, {"Intel", 6, 207, 207, "Emerald Rapids"},
  };
  for (const Design& d : kDesigns) {
    if (make == d.make && family == d.family && model >= d.first && model <= d.last) {
      return d.name;
    }
  }
  return {};
}

int64_t Machine::cache_bytes(int level) const {
  for (const Cache& cache : caches) {
    if (cache.level == level) return cache.bytes;
  }
  return 0;
}

int64_t Machine::largest_cache() const {
  int64_t largest = 0;
  for (const Cache& cache : caches) largest = std::max(largest, cache.bytes);
  return largest;
}

std::string Machine::text() const {
  const std::string design = design_of(make, family, model_number);
  return model + (design.empty() ? "" : ", " + design) + " (family " +
         std::to_string(family) + ", model " + std::to_string(model_number) + ")";
}

double busy_seconds() {
  // "cpu user nice system idle iowait irq softirq steal ...", in ticks.
  std::istringstream line(first_line("/proc/stat"));
  std::string name;
  double ticks[8];
  line >> name;
  for (double& tick : ticks) line >> tick;
  if (!line || name != "cpu") return -1;
  // Steal is what the host gave to others while a CPU of ours had work.
  const double busy = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6] + ticks[7];
  return busy / static_cast<double>(sysconf(_SC_CLK_TCK));
}

namespace {

double seconds_of(clockid_t clock) {
  timespec time;
  if (clock_gettime(clock, &time) != 0) return -1;
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

double own_seconds() { return seconds_of(CLOCK_PROCESS_CPUTIME_ID); }

double work_seconds(int threads) {
  return seconds_of(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC);
}

Machine this_machine() {
  Machine machine;
  machine.make = make_of_cpuid();
  machine.model = cpu_info().model;
  machine.family = cpuinfo_number("cpu family");
  machine.model_number = cpuinfo_number("model");
  machine.flags = cpu_info().flags;
  machine.levels = cpu_levels();
  machine.cpus = usable_cpus();
  machine.caches = caches_of_sysfs("/sys/devices/system/cpu/cpu0");
  if (machine.caches.empty()) machine.caches = caches_of_cpuid();
  if (machine.caches.empty()) machine.caches = caches_of_sysconf();
  const fs::path huge = "/sys/kernel/mm/transparent_hugepage";
  machine.huge_pages = chosen_of(first_line(huge / "enabled"));
  machine.huge_page_bytes = size_of(first_line(huge / "hpage_pmd_size"));
  machine.available = memory_available();
  return machine;
}

}  // namespace nibble
