// The least time that work can take on a machine, and what it waits for.
//
//   seconds = max(bytes / bandwidth, operations / peak)
//
//   bytes       moved between memory and the CPU: mostly the weights
//   operations  of the instruction that does the work, a multiply-add being two
//   bandwidth   bytes a second at a working set of that size and those threads
//   peak        operations a second of that instruction and those threads
//
// Preconditions: bandwidth and peak are positive. Allocates nothing.
#pragma once

#include <algorithm>

namespace nibble {

struct Roofline {
  double memory_seconds = 0, compute_seconds = 0;
  double seconds() const { return std::max(memory_seconds, compute_seconds); }
  bool memory_binds() const { return memory_seconds >= compute_seconds; }
};

inline Roofline roofline(double bytes, double operations, double bandwidth, double peak) {
  return {.memory_seconds = bytes / bandwidth, .compute_seconds = operations / peak};
}

}  // namespace nibble
