// What this CPU can do, and which of it kernels may use.
//
// NIBBLE_CPU (environment) or force_cpu (the CLI's --cpu) names an ISA level: reference,
// avx2, avxvnni, avx512vnni, avx512bf16, amx. Rows above the forced level are not
// selected. A level that this CPU lacks is refused (unsupported; the message names the
// missing flags), an unknown name too (invalid_argument). main calls
// check_cpu_environment first; where nobody does, a refused NIBBLE_CPU selects the
// reference rows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

enum CpuFlag : uint32_t {
  kCpuAvx2 = 1u << 0,  // AVX2 + FMA + F16C
  kCpuAvxVnni = 1u << 1,
  kCpuAvx512 = 1u << 2,  // F, BW, VL, DQ
  kCpuAvx512Vnni = 1u << 3,
  kCpuAvx512Bf16 = 1u << 4,  // BF16 and VBMI
  kCpuAmxInt8 = 1u << 5,
  kCpuAmxBf16 = 1u << 6,
};

struct CpuInfo {
  std::string model;   // /proc/cpuinfo's "model name"
  uint32_t flags = 0;  // what the hardware and operating system allow
};
const CpuInfo& cpu_info();
std::string cpu_flag_names(uint32_t flags);  // "AVX2/FMA/F16C, AVX-512 VNNI"

// Flags kernels may use now: the hardware's, cut down to the forced level. Table
// selection functions take this as a defaulted argument.
uint32_t usable_cpu_flags();
Status force_cpu(std::string_view level);  // "" restores detection
Status check_cpu_environment();  // whether NIBBLE_CPU, if set, is a level of this CPU
std::vector<std::string>
cpu_levels();  // the levels that this machine can run, best first
std::string cpu_level_names();  // every level there is: "amx, ..., reference"

}  // namespace nibble
