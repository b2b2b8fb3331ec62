// What this process has in memory, as the system counts it.
//
// resident: anonymous memory and the pages of mapped files that are in our page tables;
// peak: the most that this has been (VmHWM). 0: a system without /proc. Safe to call from
// any thread.
#pragma once

#include <cstdint>

namespace nibble {

struct ProcessMemory {
  int64_t resident = 0;  // bytes
  int64_t peak = 0;
};
ProcessMemory process_memory();

}  // namespace nibble
