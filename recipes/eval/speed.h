// How fast a model runs here: tokens or images a second, median of interleaved repeats.
//
// decode: one token at a time after a prompt of 16; prefill: one call of min(256,
// context) tokens; images: batches of 32; sentences: one call each, or a batch a call. Each figure is the median of `repeats` timings,
// with the quartiles; two models are timed in turns, so that a slow minute of the machine
// hits both.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/rate.h"
#include "kernels/runtime/cuda_decoder.h"
#include "kernels/runtime/executor.h"

namespace nibble {

struct Speed {
  Rate decode, prefill, images, sentences;  // repeats 0: does not apply to this model
  std::map<std::string, int64_t> kernels;  // kernel row -> layers that it serves
  std::string cpu;                         // "model name, avx512vnni, 2 threads"
};

struct SpeedOptions {
  int64_t repeats = 5;
  int64_t decode_tokens = 32;    // timed in one repeat
  int64_t prefill_tokens = 256;  // at most the context
  int64_t image_batch = 32;
  // Encoders: one repeat encodes these, `batch` at a time; none: 32 of 32 random ids.
  std::vector<std::vector<int32_t>> sentences = {};
  int64_t batch = 1;
};

std::string cpu_text();  // "model name, avx512vnni, 2 threads": those in use now
std::string rate_text(const Rate& rate, double unit = 1);  // "12.5 [12.1, 12.9]", "-"

// The same of decode and prefill on a GPU; decode with the choices left to it, a CUDA
// graph a token. device: what stands in place of the CPU.
Result<Speed> measure_gpu_speed(cuda::Decoder& decoder, const std::string& device,
                                const SpeedOptions& options);

// One result a model, in their order. Token ids and pixels come from a fixed seed.
Result<std::vector<Speed>> measure_speed(const std::vector<Executor*>& models,
                                         const SpeedOptions& options);

}  // namespace nibble
