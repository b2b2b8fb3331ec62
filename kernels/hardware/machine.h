// What this machine is: its CPU, caches, memory and huge pages, as the system says.
//
//   caches     data and unified caches of the first CPU, the smallest level first:
//              sysfs, else cpuid, else sysconf
//   available  bytes that can be allocated without swapping: the system's figure, or
//              what this process's control group leaves of it
//
// Never fails: what cannot be found is empty or 0. Reads a few small files, once a call.
// Safe to call from any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace nibble {

struct Cache {
  int level = 0;      // 1, 2, 3
  int64_t bytes = 0;  // of one instance
  int shared_by = 0;  // CPUs that share an instance; 0: unknown
  int line = 0;       // bytes of a line; 0: unknown
  bool operator==(const Cache&) const = default;
};

struct Machine {
  std::string make;   // "AMD", "Intel", else as cpuid gives it
  std::string model;  // /proc/cpuinfo's "model name"
  int family = 0, model_number = 0;
  uint32_t flags = 0;               // CpuFlag: what hardware and system allow
  std::vector<std::string> levels;  // ISA levels that kernels can be held to, best first
  int cpus = 0;                     // that this process may use
  std::vector<Cache> caches;
  std::string huge_pages;  // "always", "madvise", "never" or "unknown": transparent ones
  int64_t huge_page_bytes = 0;  // of a transparent huge page; 0: unknown
  int64_t available = 0;

  int64_t cache_bytes(int level) const;  // of one instance; 0: no such level
  int64_t largest_cache() const;
  std::string text() const;  // "AMD EPYC, Zen 4 (family 25, model 17)"
};
Machine this_machine();

// CPU time that everything on the machine has used since it started, and this process
// alone, in seconds; their difference over a while is what others took. Negative:
// unknown.
double busy_seconds();
double own_seconds();
// What work is timed by, of `threads` threads: one thread by its own CPU time, so that
// what else runs on its CPU meanwhile does not count; several by the clock, as they wait
// for each other.
double work_seconds(int threads);

// The parts of it, for tests: `cpu` stands for /sys/devices/system/cpu/cpu0.
std::vector<Cache> caches_of_sysfs(const std::filesystem::path& cpu);
std::vector<Cache> caches_of_cpuid();
std::vector<Cache> caches_of_sysconf();
// "Zen 5"; "" where the table has no such processor.
std::string design_of(const std::string& make, int family, int model);
// "always [madvise] never" -> "madvise".
std::string chosen_of(const std::string& text);

}  // namespace nibble
