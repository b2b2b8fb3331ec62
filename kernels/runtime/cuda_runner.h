// What runs the CUDA kernels' calls: a GPU (cuda_device.h) or, in tests, the emulator
// (tests/kernels/cuda_emulated_runner.h), so that both are asked for the same.
//
// Calls run in the order that they are made in. Their errors may come late, with a
// download.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "kernels/base/tensor.h"
#include "kernels/cuda/blas.h"
#include "kernels/ops/elementwise/cuda_elementwise.h"
#include "kernels/ops/embedding/cuda_embedding.h"
#include "kernels/ops/fake_quantize/cuda_fake_quantize.h"
#include "kernels/ops/kv_attention/cuda_kv_attention.h"
#include "kernels/ops/linear/cuda_linear.h"
#include "kernels/ops/linear/cuda_plain.h"
#include "kernels/ops/linear/cuda_prefill.h"
#include "kernels/ops/next_token/cuda_next_token.h"
#include "kernels/ops/quantize_rows/cuda_quantize_rows.h"
#include "kernels/ops/rms_norm/cuda_rms_norm.h"
#include "kernels/ops/rope/cuda_rope.h"
#include "kernels/ops/silu_mul/cuda_silu_mul.h"

namespace nibble::cuda {

class Runner {
 public:
  virtual ~Runner() = default;
  virtual Status run(const LinearCall& call, const LinearPlan& plan) = 0;
  virtual Status run(const PlainLinearCall& call) = 0;
  virtual Status run(const DequantizeCall& call) = 0;
  virtual Status run(const UnpackCodesCall& call) = 0;
  virtual Status run(const EpilogueCall& call) = 0;
  virtual Status run(const ProductCall& call) = 0;
  virtual bool has_products() const = 0;  // whether it takes ProductCalls
  virtual Status run(const KvAttentionCall& call, const KvAttentionPlan& plan) = 0;
  virtual Status run(const RmsNormCall& call) = 0;
  virtual Status run(const RopeCall& call) = 0;
  virtual Status run(const QuantizeRowsCall& call) = 0;
  virtual Status run(const StoreKvCall& call) = 0;
  virtual Status run(const EmbeddingCall& call) = 0;
  virtual Status run(const SiluMulCall& call) = 0;
  virtual Status run(const AddCall& call) = 0;
  virtual Status run(const NextTokenCall& call) = 0;
  virtual Status run(const FakeQuantizeCall& call) = 0;
  virtual Status run(const FakeQuantizeGradientCall& call) = 0;

  virtual std::string name() const = 0;  // of the GPU
  virtual int multiprocessors() const = 0;
  // Whether an mma's sum is exact before it is rounded; a GPU's is not.
  virtual bool adds_exactly() const = 0;
  // What `calls` runs, to be run again: on a GPU a CUDA graph.
  virtual Result<std::function<Status()>> record(std::function<Status()> calls) = 0;

  // The kernels' memory; gone with clear() or the runner. resource_exhausted: there is
  // not so much.
  virtual Result<void*> allocate(int64_t bytes) = 0;
  virtual Status copy_in(void* to, const void* from, int64_t bytes) = 0;
  virtual Status copy_out(void* to, const void* from, int64_t bytes) = 0;
  virtual void clear() = 0;
};

}  // namespace nibble::cuda
