// What would pay on this machine: each scheme's speed, memory and risk for a model, told
// before anything is quantized.
//
//   decode  seconds a step = rest + sum over kinds of layers (layers x seconds of one)
//   rest    attention, norms and all else that is no linear layer, timed node by node in
//           a step at that context: the float model's own, or the smallest candidate's for
//           those whose weights a cache keeps
//
// A kind is layers of one shape. Its seconds are measured here, on the row that would serve
// it, over as many different weights as the model would have between two uses of one, or as
// no cache holds; weights are the model's own, rounded to nearest, whose relative squared
// error is the risk. The roofline (kernels/hardware) says what binds a layer.
//
// unsupported: a model that is no float decoder, or has mixtures of experts.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/runtime/executor.h"
#include "recipes/eval/timing_cache.h"

namespace nibble {

struct AdviseOptions {
  int64_t batch = 1;      // sequences decoded together, each with a cache of its own
  int64_t context = 512;  // positions in each cache
  int64_t prefill = 256;  // tokens of the prompt, timed in one call
  int64_t repeats = 3;
  std::string kv = {};  // the cache's scheme
  TimingCache* timings = nullptr;  // of layers, from earlier runs; may be null
};

struct AdvisedKind {
  std::string scheme, kernel;
  int64_t rows = 0, cols = 0, layers = 0;
  int64_t bytes = 0;  // of one layer
  double decode_seconds = 0, prefill_seconds = 0;  // of one layer
  bool decode_by_memory = false, prefill_by_memory = false;  // what binds, at best
  bool falls_back = false;  // to a row that decodes weights to float first
};

struct Advice {
  std::string name;     // "w4a16 group 128, int8 activations"
  std::string command;  // how to make and run it: "--recipe w4a16-rtn --set group=128"
  Compute compute = Compute::float_activations;
  std::vector<AdvisedKind> kinds;
  int64_t weight_bytes = 0, cache_bytes = 0;
  double decode_seconds = 0;   // a step of the batch
  double prefill_seconds = 0;  // until the first token
  double error = 0;            // rms error over rms weight, quantized layers; 0: float
  std::string verdict;         // why it loses; "" for one that pays
};

struct AdviceReport {
  std::string cpu;
  double read_bandwidth = 0;  // bytes a second, of memory
  double rest_decode = 0, rest_prefill = 0;
  std::vector<Advice> advice;  // the fastest decode first
};

Result<AdviceReport> advise(std::shared_ptr<const Artifact> model,
                            const AdviseOptions& options,
                            const std::function<void(int64_t, int64_t)>& progress);

// The artifact that an advice speaks of, rounded to nearest, and the seconds that a step
// and a prompt of it take: what --measure compares with.
struct MeasuredAdvice {
  double decode_seconds = 0, prefill_seconds = 0;
};
Result<MeasuredAdvice> measure_advice(std::shared_ptr<const Artifact> model,
                                      const Advice& advice, const AdviseOptions& options);

}  // namespace nibble
