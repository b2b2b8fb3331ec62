// How fast each row of the linear table runs here, beside what the machine gives in the
// same minute: the read bandwidth and the peak of the row's own instruction.
//
//   bytes       weight bytes / seconds of a call    packed codes, scales, zero points
//   operations  2 rows cols tokens / seconds        a second
//   of_read     bytes / read_bandwidth              of the same round, working set,
//   threads of_peak     operations / peak                   of the same round and threads
//
// Decode (tokens <= 8) goes from weight to weight, so that each call finds its weight in
// memory and not in a cache: a few of different random codes and copies of them, together
// the working set. Prefill stays with one weight. Limits and kernels take turns within a
// round, one round a repeat; every figure is the median over rounds with its quartiles. A
// case's weights are freed before the next case's are made. One thread is timed by its CPU
// time, several by the clock (hardware/machine.h). A round in which other processes had a
// core is run again, at most as often as there are repeats.
//
//   error   max |y - reference| / max |reference| of one random token, the reference in
//           f64 from float activations: what int8 activations cost is in it
//
// invalid_argument: an impossible shape, a filter that leaves nothing (names the cases).
// resource_exhausted: the working set does not fit beside its read buffer. cancelled.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/hardware/probe.h"

namespace nibble {

inline constexpr int64_t kDecodeTokens = 8;  // at most, of a decode case

struct KernelSpeed {
  std::string scheme = {}, activation = {};  // "int4/g128@f16", "s8"
  int64_t tokens = 0;
  int threads = 0;
  std::string kernel = {};       // the row that serves it
  std::string instruction = {};  // whose peak it is held to; empty: a reference row
  double weight_bytes = 0;       // of one weight
  int64_t weights = 0;           // that it went through in turn
  Rate bytes = {}, operations = {};
  Rate read = {}, peak = {};        // the limits, of the same rounds
  Rate of_read = {}, of_peak = {};  // repeats 0: does not apply
  double error = 0;
  double others = 0;  // cores that other processes kept busy meanwhile
};

struct KernelSpeedOptions {
  int64_t rows = 4096, cols = 4096;
  int64_t working_set = 0;        // bytes; 0: memory_working_set
  int64_t repeats = 9;            // rounds
  std::vector<int> threads = {};  // empty: one, and all that parallel_for uses
  std::string filter = {};  // a part of "SCHEME ACTIVATION TOKENS"; empty: every case
  double seconds = 0.03;    // of one timing, about
  // Called before each case with its text.
  std::function<void(int64_t done, int64_t total, const std::string& what)> progress = {};
};

struct KernelSpeeds {
  Probe limits = {};
  int64_t rows = 0, cols = 0, working_set = 0;
  std::vector<KernelSpeed> cases = {};
};

Result<KernelSpeeds> measure_kernels(const KernelSpeedOptions& options);

// "int4/g128@f16 s8 1": what the filter looks at.
std::string kernel_case_text(const KernelSpeed& speed);
// A header, then a row a case; the limits: a row a level or instruction.
std::vector<std::vector<std::string>> kernel_speed_rows(const KernelSpeeds& speeds);
std::vector<std::vector<std::string>> limit_rows(const Probe& limits);
// CPU, caches, huge pages, shape, working set and other processes' load, in a few lines.
std::string kernel_speed_heading(const KernelSpeeds& speeds);

}  // namespace nibble
