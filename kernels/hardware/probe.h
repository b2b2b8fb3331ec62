// What this machine can do at most: bytes read a second by working set, operations a
// second of each instruction that the kernels use. The limits that kernels are held to.
//
//   read_bandwidth  bytes / seconds       of vector loads of the whole buffer
//   peak            operations / seconds  of one instruction on registers
//
//   threads   run at once, each bound to a CPU and on its own part of the buffer or its
//   own registers; the
//             clock runs from when all are ready until the last is done; one alone
//             is timed by its CPU's seconds
//   seconds   of one timing, about: short ones are repeated inside
//
// Call these in the rounds of a benchmark, so that limit and kernel see the same machine.
// A buffer is anonymous memory in huge pages where the system gives them; word i holds i,
// so that the sum proves the read.
//
// invalid_argument: threads < 1, an empty buffer. unsupported: the CPU lacks the row's
// instruction (names row, flags and CPU). resource_exhausted: the system has not the
// memory. internal: a sum is wrong.
// Starts threads of its own (parallel_for's are left alone). Several callers at a time
// disturb each other's figures, nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/cpu.h"
#include "kernels/base/rate.h"
#include "kernels/base/status.h"
#include "kernels/hardware/machine.h"

namespace nibble {

inline constexpr double kTimingSeconds = 0.005;

// --- reading

class ReadBuffer {
 public:
  // At least `bytes`, in whole pages a thread.
  static Result<ReadBuffer> create(int64_t bytes);
  ReadBuffer(ReadBuffer&& other) noexcept;
  ReadBuffer& operator=(ReadBuffer&& other) noexcept;
  ~ReadBuffer();

  const uint64_t* words() const { return words_; }
  int64_t bytes() const { return bytes_; }
  // The sum of its words modulo 2^64, by arithmetic: n (n - 1) / 2.
  uint64_t expected_sum() const;

 private:
  ReadBuffer() = default;
  uint64_t* words_ = nullptr;
  int64_t bytes_ = 0;
};

// The sum of the first `bytes` (0: all) read by that many threads, `passes` times.
Result<uint64_t> read_sum(const ReadBuffer& buffer, int threads, int64_t bytes = 0,
                          int64_t passes = 1);
// Bytes a second of one timing: whole passes over the first `bytes` (0: all), at least
// one. Best ISA of the CPU, whatever level kernels are held to.
Result<double> read_bandwidth(const ReadBuffer& buffer, int threads, int64_t bytes = 0,
                              double seconds = kTimingSeconds);

// --- instructions

enum class Numbers : uint8_t { int8, bf16, f32, lookup };
const char* numbers_name(Numbers numbers);  // "int8"

struct PeakRow {
  const char* name;  // "vpdpbusd zmm"
  uint32_t flags;    // the CPU flags it needs
  Numbers numbers;
  int64_t operations;  // of one round: a product and a sum are two, a lookup one
  int64_t (*run)(int64_t rounds);

  // run(rounds) = rounds * operations / weight()
  int64_t weight() const { return numbers == Numbers::lookup ? 1 : 2; }
};
const std::vector<PeakRow>& peak_rows();  // peaks.inc
// The first row of that kind whose instruction these flags have; null: none.
const PeakRow* best_peak(Numbers numbers, uint32_t cpu_flags);
// ok, or why this CPU cannot run it.
Status can_run(const PeakRow& row, uint32_t cpu_flags = cpu_info().flags);
// Operations a second of one timing.
Result<double> peak(const PeakRow& row, int threads, double seconds = kTimingSeconds);

// --- all of it

struct ProbeOptions {
  std::vector<int> threads;  // empty: one, and all that parallel_for uses
  int64_t repeats = 7;       // timings of each figure, taken in turns
  double seconds = kTimingSeconds;
  int64_t memory_bytes = 0;  // the set that no cache holds; 0: memory_working_set
};
struct BandwidthLimit {
  std::string level;  // "L1", "L2", "L3", "memory"
  int64_t bytes = 0;  // of the working set, all threads together
  int threads = 0;
  Rate rate = {};  // bytes a second
};
struct PeakLimit {
  const PeakRow* row = nullptr;
  int threads = 0;
  Rate rate = {};            // operations a second; repeats 0: refused
  std::string refused = {};  // why, else empty
};
struct Probe {
  Machine machine;
  std::vector<BandwidthLimit> bandwidths;
  std::vector<PeakLimit> peaks;
  std::string note;  // what was cut down, else empty
};
Result<Probe> probe(const ProbeOptions& options = {});

// Four times the largest cache and at least 1 GiB, but at most a third of what memory is
// available; *note says when that cuts it down.
int64_t memory_working_set(const Machine& machine, std::string* note);

}  // namespace nibble
