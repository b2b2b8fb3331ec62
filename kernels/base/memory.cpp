#include "kernels/base/memory.h"

#include <cstdlib>
#include <fstream>
#include <string>

namespace nibble {

ProcessMemory process_memory() {
  ProcessMemory memory;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const int64_t bytes = std::atoll(line.c_str() + colon + 1) * 1024;  // in kB
    if (line.compare(0, colon, "VmRSS") == 0) memory.resident = bytes;
    if (line.compare(0, colon, "VmHWM") == 0) memory.peak = bytes;
  }
  return memory;
}

}  // namespace nibble
