#include "kernels/base/cpu.h"

#include <atomic>
#include <cstdlib>
#include <fstream>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nibble {
namespace {

struct Level {
  const char* name;
  uint32_t required;
  uint32_t allowed;  // flags that rows may use under this level
};

constexpr uint32_t kAvx512VnniNeeds = kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni;
constexpr uint32_t kAvx512Bf16Needs = kAvx512VnniNeeds | kCpuAvx512Bf16;
constexpr uint32_t kAmxNeeds = kAvx512Bf16Needs | kCpuAmxInt8 | kCpuAmxBf16;
constexpr Level kLevels[] = {
    // best first
    {"amx", kAmxNeeds, kAmxNeeds | kCpuAvxVnni},
    {"avx512bf16", kAvx512Bf16Needs, kAvx512Bf16Needs | kCpuAvxVnni},
    {"avx512vnni", kAvx512VnniNeeds, kAvx512VnniNeeds | kCpuAvxVnni},
    {"avxvnni", kCpuAvx2 | kCpuAvxVnni, kCpuAvx2 | kCpuAvxVnni},
    {"avx2", kCpuAvx2, kCpuAvx2},
    {"reference", 0, 0},
};

struct FlagName {
  uint32_t flag;
  const char* name;
};
constexpr FlagName kFlagNames[] = {
    {kCpuAvx2, "AVX2/FMA/F16C"},
    {kCpuAvxVnni, "AVX-VNNI"},
    {kCpuAvx512, "AVX-512 F/BW/VL/DQ"},
    {kCpuAvx512Vnni, "AVX-512 VNNI"},
    {kCpuAvx512Bf16, "AVX-512 BF16/VBMI"},
    {kCpuAmxInt8, "AMX INT8"},
    {kCpuAmxBf16, "AMX BF16"},
};

#if defined(__x86_64__)
uint64_t read_xcr0() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool bit(uint32_t word, int index) { return (word >> index) & 1u; }

// Linux gives a process AMX tile registers only on request.
bool request_amx() {
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

uint32_t detect_flags() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  const bool fma = bit(c, 12), f16c = bit(c, 29), osxsave = bit(c, 27);
  if (!osxsave) return 0;
  const uint64_t xcr0 = read_xcr0();
  const bool os_avx = (xcr0 & 0x6) == 0x6;       // XMM and YMM state
  const bool os_avx512 = (xcr0 & 0xe6) == 0xe6;  // + opmask, ZMM_Hi256, Hi16_ZMM
  const bool os_amx = (xcr0 & 0x60000) == 0x60000;
  uint32_t b7, c7, d7, a71 = 0, b71 = 0, c71 = 0, d71 = 0;
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return 0;
  if (a >= 1) __get_cpuid_count(7, 1, &a71, &b71, &c71, &d71);

  uint32_t flags = 0;
  if (os_avx && fma && f16c && bit(b7, 5)) flags |= kCpuAvx2;
  if ((flags & kCpuAvx2) && bit(a71, 4)) flags |= kCpuAvxVnni;
  if (os_avx512 && bit(b7, 16) && bit(b7, 30) && bit(b7, 31) && bit(b7, 17)) {
    flags |= kCpuAvx512;
    if (bit(c7, 11)) flags |= kCpuAvx512Vnni;
    if (bit(a71, 5) && bit(c7, 1)) flags |= kCpuAvx512Bf16;
    if (os_amx && bit(d7, 24) && request_amx()) {
      if (bit(d7, 25)) flags |= kCpuAmxInt8;
      if (bit(d7, 22)) flags |= kCpuAmxBf16;
    }
  }
  return flags;
}
#else
uint32_t detect_flags() { return 0; }
#endif

std::string detect_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown CPU";
}

Result<uint32_t> allowed_by(std::string_view name) {
  for (const Level& level : kLevels) {
    if (name != level.name) continue;
    const uint32_t missing = level.required & ~cpu_info().flags;
    if (missing != 0) {
      std::string usable;
      for (const std::string& other : cpu_levels())
        usable += (usable.empty() ? "" : ", ") + other;
      return error(StatusCode::unsupported, "[cpu] ", name, ": this level needs ",
                   cpu_flag_names(level.required), "; this CPU (", cpu_info().model,
                   ") lacks ", cpu_flag_names(missing), "; use one of ", usable);
    }
    return level.allowed & cpu_info().flags;
  }
  return error(StatusCode::invalid_argument, "[cpu] level: one of ", cpu_level_names(),
               "; found \"", name, "\"; use one of them, or leave it out to detect");
}

const char* environment_level() {
  const char* level = std::getenv("NIBBLE_CPU");
  return level != nullptr ? level : "";
}

uint32_t flags_by_default() {
  const std::string_view level = environment_level();
  if (level.empty()) return cpu_info().flags;
  const Result<uint32_t> allowed = allowed_by(level);
  return allowed.ok() ? *allowed : 0;
}

std::atomic<uint32_t>& current_flags() {
  static std::atomic<uint32_t> flags{flags_by_default()};
  return flags;
}

}  // namespace

const CpuInfo& cpu_info() {
  static const CpuInfo info{detect_model(), detect_flags()};
  return info;
}

std::string cpu_flag_names(uint32_t flags) {
  std::string text;
  for (const FlagName& row : kFlagNames) {
    if ((flags & row.flag) == 0) continue;
    if (!text.empty()) text += ", ";
    text += row.name;
  }
  return text;
}

uint32_t usable_cpu_flags() { return current_flags().load(std::memory_order_relaxed); }

Status force_cpu(std::string_view level) {
  if (level.empty()) {
    current_flags().store(flags_by_default());
    return ok_status();
  }
  NIBBLE_ASSIGN_OR_RETURN(const uint32_t allowed, allowed_by(level));
  current_flags().store(allowed);
  return ok_status();
}

Status check_cpu_environment() {
  const std::string_view level = environment_level();
  return level.empty() ? ok_status() : allowed_by(level).status();
}

std::vector<std::string> cpu_levels() {
  std::vector<std::string> names;
  for (const Level& level : kLevels) {
    if ((level.required & ~cpu_info().flags) == 0) names.emplace_back(level.name);
  }
  return names;
}

std::string cpu_level_names() {
  std::string names;
  for (const Level& level : kLevels) names += cat(names.empty() ? "" : ", ", level.name);
  return names;
}

}  // namespace nibble
