// How fast the kernels run here, beside what the machine gives in the same minute: the
// read bandwidth and the peak of the instruction that each really uses.
//
//   bytes       weight bytes / seconds of a call   packed codes, scales, zero points
//   operations  2 rows cols tokens / seconds       a second
//   of_read     bytes / read_bandwidth             of the same round, set and threads
//   of_peak     instruction_operations / (seconds peak)   likewise; linear_limit.h: by
//               digits float activations take four products a weight
//
// Groups of cases:
//   linear     the rows of the linear table, at 1, 8 and 512 tokens
//   attention  one token over a KV cache of every kind, and prompts
//   conv       int8 convolutions, 3x3, 1x1, strided and depthwise, rounding to codes
//   memory     quantize, dequantize, pack, unpack, RMSNorm, RoPE, SiLU-mul of a matrix:
//              bytes are those read and written, held to what reading them and writing
//              them takes
//   sweep      int4 and int8 weights at 1 to 64 tokens, by the regime that a row chooses
//              and by those that it could take instead: what its limits rest on
//
// Decode (tokens <= 8), the sweep, caches and matrices go from operand to operand, so
// that each call finds its own in memory and not in a cache: together the working set. A
// few of them are random, the rest copies; of weights and matrices the copies are turned,
// so that no two are equal. Prefill stays with one weight or cache, and convolutions with
// one image. Limits and kernels take turns within a round, one round a repeat; every
// figure is the median over rounds with its quartiles. A case's operands are freed before
// the next case's are made. One thread is timed by its CPU time, several by the clock
// (hardware/machine.h). A round in which other processes had a core is run again, at most
// as often as there are repeats.
//
//   error   max |y - reference| / max |reference| of one random token, the reference in
//           f64 from float activations: what int8 activations cost is in it
//
// invalid_argument: an impossible shape, no such group, a filter that leaves nothing
// (names the cases). resource_exhausted: the working set does not fit beside its read
// buffer. cancelled.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/hardware/probe.h"
#include "recipes/eval/linear_limit.h"

namespace nibble {

inline constexpr int64_t kDecodeTokens = 8;  // at most, of a decode case
inline constexpr const char* kKernelGroups[] = {"linear", "attention", "conv", "memory",
                                                "sweep"};

struct KernelSpeed {
  std::string group = "linear";
  std::string scheme = {}, activation = {};  // "int4/g128@f16", "s8"
  int64_t tokens = 0;
  int threads = 0;
  std::string kernel = {};            // the row that serves it
  std::string regime = {};            // of a linear row (linear_limit.h), else empty
  bool chosen = true;                 // false: the sweep made the row take this regime
  std::string instruction = {};       // whose peak it is held to; empty: none
  double instruction_operations = 0;  // of a call
  double weight_bytes = 0;            // that a call reads: of one weight, cache, matrix
  double written_bytes = 0;           // likewise; 0 where results are small
  int64_t weights = 0;                // operands that it went through in turn
  Rate seconds = {};                  // of a call
  Rate bytes = {}, operations = {};
  Rate read = {}, write = {}, peak = {};  // the limits, of the same rounds
  Rate of_read = {}, of_peak = {};        // repeats 0: does not apply
  double error = -1;                      // negative: of linear rows only
  double others = 0;  // cores that other processes kept busy meanwhile
};

struct KernelSpeedOptions {
  int64_t rows = 4096, cols = 4096;
  int64_t context = 8192;         // positions of the KV caches
  int64_t working_set = 0;        // bytes; 0: memory_working_set
  int64_t repeats = 9;            // rounds
  std::vector<int> threads = {};  // empty: one, and all that parallel_for uses
  std::string filter = {};        // a part of kernel_case_text; empty: every case
  std::vector<std::string> groups = {"linear"};
  double seconds = 0.03;  // of one timing, about
  // Called before each case with its text.
  std::function<void(int64_t done, int64_t total, const std::string& what)> progress = {};
};

struct KernelSpeeds {
  Probe limits = {};
  int64_t rows = 0, cols = 0, working_set = 0;
  std::vector<KernelSpeed> cases = {};
};

Result<KernelSpeeds> measure_kernels(const KernelSpeedOptions& options);

// "int4/g128@f16 s8 1", of other groups "sweep int4/g128@f16 s8 1": what the filter looks
// at.
std::string kernel_case_text(const KernelSpeed& speed);
// A header, then a row a case; the limits: a row a level or instruction.
std::vector<std::vector<std::string>> kernel_speed_rows(const KernelSpeeds& speeds);
std::vector<std::vector<std::string>> limit_rows(const Probe& limits);
// CPU, caches, huge pages, shape, working set and other processes' load, in a few lines.
std::string kernel_speed_heading(const KernelSpeeds& speeds);

}  // namespace nibble
