// Linear layers of a decoder on a GPU for any number of tokens: nibble's kernels up to
// kMostTokens, more by cuBLASLt's products where the runner has them and they take the
// shape, else kMostTokens at a time.
#pragma once

#include "kernels/runtime/cuda_runner.h"

namespace nibble::cuda {

struct Scratch {  // of all linear and attention calls, which run one after the other
  void* partial = nullptr;
  uint32_t* counters = nullptr;
  int64_t partial_bytes = 0, counter_count = 0;
  // Of products: a weight as floats or codes row by row, and sums before the epilogue.
  void *weight = nullptr, *sums = nullptr;
  int64_t weight_bytes = 0, sum_bytes = 0;
};

inline int64_t whole_16(int64_t n) { return (n + 15) / 16 * 16; }

// A layer's call of any number of tokens, at most kChunk, as x and y lie there.
struct LayerCall {
  LinearCall call;
  int multiprocessors = 0;
  bool has_products = false;
  // Where x are the numbers of e4m3 codes: those, 0 behind the columns, weight_stride()
  // apart. A product takes them as they are where it can.
  const void* x_codes = nullptr;
  bool is_s8() const { return call.form == LinearForm::int8_s8; }
  int64_t weight_stride() const { return whole_16(call.cols); }
  int64_t weight_bytes() const { return call.rows * weight_stride() * (is_s8() ? 1 : 2); }
  bool needs_epilogue() const {
    return is_s8() || call.bias != nullptr || call.x_scales != nullptr;
  }

  Status run(Runner& runner, const Scratch& scratch, int tokens) const;

 private:
  Status multiply(Runner& runner, const Scratch& scratch, int tokens) const;
  Status multiply_codes(Runner& runner, const Scratch& scratch, int tokens) const;
  Status finish(Runner& runner, const Scratch& scratch, int tokens, bool of_codes) const;
};

// A layer of 16-bit floats, of call.tokens tokens.
Status run_plain_layer(Runner& runner, const Scratch& scratch,
                       const PlainLinearCall& call, bool has_products);

}  // namespace nibble::cuda
