// Times calls of kernels and the limits of the machine in turns, round by round: what
// every case of `nibble bench --kernels` has in common.
//
//   of_read   (bytes / read + written_bytes / write) / seconds
//   of_peak   instruction operations / peak / seconds
//
//   read, write  bytes a second of the same round, working set and threads; write is what
//                filling memory reaches (the system's memset)
//
// A round times every case once at every thread count; a first one, not counted, warms
// up. A round in which other processes had a core is run again, at most `repeats` times.
//
// cancelled. The errors of the limits are handed on. Allocates. One measurement at a
// time: it sets parallel_for's threads and binds them to CPUs.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "kernels/base/parallel.h"
#include "recipes/eval/kernel_speed.h"

namespace nibble {

// Cores that others may use of a round that counts: less is what an idle system does.
inline constexpr double kDisturbed = 0.06;

struct TimedCase {
  KernelSpeed speed;                 // all but threads and figures
  std::function<void()> call;        // once; each goes to its next operand by itself
  std::function<void()> begin = {};  // before a timing, off the clock
  bool by_memory = false;            // held to what memory gives as well
  double operations = 0;             // of a call; 0: not counted
  double peak_operations = 0;        // of a call, of the instruction
  const PeakRow* peak = nullptr;
};

// Memory that is written to find out how fast that can be.
class WriteBuffer {
 public:
  explicit WriteBuffer(int64_t bytes);
  // Bytes a second of one timing: whole passes, at least one.
  double bandwidth(int threads, double seconds);

 private:
  Bytes bytes_;
  std::byte* data_ = nullptr;
  int value_ = 0;  // of the next pass
};

// What every case shares.
struct Bench {
  const KernelSpeedOptions& options;
  std::vector<int> threads;
  double limit_seconds = 0;  // of one timing of a limit
  int64_t working_set = 0;
  ReadBuffer* read = nullptr;
  WriteBuffer* write = nullptr;  // null: no case writes

  // Operands of `bytes` each that make up the working set.
  int64_t operands(double bytes) const;
};

// parallel_for's thread count as it was, on every way out.
struct ThreadsKept {
  const int count = thread_count();
  ~ThreadsKept() { set_thread_count(count); }
};
// parallel_for's threads, awake and each bound to a CPU of its own (the caller is bound
// to the first).
void use_threads(int threads);

// Appends every case at every thread count to *result.
Status measure_cases(Bench& bench, const std::vector<TimedCase>& cases,
                     std::vector<KernelSpeed>* result);

// Cases of one thing that are made, timed and freed together.
struct TimedPart {
  std::string what;  // for progress
  std::function<Result<std::vector<TimedCase>>(Bench&)> make;
  bool writes = false;
};
// The parts of the groups attention, conv and memory whose cases' texts have the filter
// in them; `all` collects every text.
Result<std::vector<TimedPart>> operation_parts(const KernelSpeedOptions& options,
                                               std::vector<std::string>* all);

}  // namespace nibble
