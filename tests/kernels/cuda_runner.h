// Runs the CUDA kernels' calls for the tests: under the emulator (cuda_emulated_runner.h)
// or on a GPU (tests/cuda/device_runner.h), so that both are asked for the same.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/ops/fake_quantize/cuda_fake_quantize.h"
#include "kernels/ops/kv_attention/cuda_kv_attention.h"
#include "kernels/ops/linear/cuda_linear.h"
#include "kernels/ops/quantize_rows/cuda_quantize_rows.h"
#include "kernels/ops/rms_norm/cuda_rms_norm.h"
#include "kernels/ops/rope/cuda_rope.h"

namespace nibble::cuda {

class Runner {
 public:
  virtual ~Runner() = default;
  virtual Status run(const LinearCall& call, const LinearPlan& plan) = 0;
  virtual Status run(const DequantizeCall& call) = 0;
  virtual Status run(const KvAttentionCall& call, const KvAttentionPlan& plan) = 0;
  virtual Status run(const RmsNormCall& call) = 0;
  virtual Status run(const RopeCall& call) = 0;
  virtual Status run(const QuantizeRowsCall& call) = 0;
  virtual Status run(const StoreKvCall& call) = 0;
  virtual Status run(const FakeQuantizeCall& call) = 0;
  virtual Status run(const FakeQuantizeGradientCall& call) = 0;

  // Whether an mma's sum is exact before it is rounded; a GPU's is not.
  virtual bool adds_exactly() const = 0;

  // The kernels' memory; gone with clear() or the runner.
  template <class T>
  T* upload(const std::vector<T>& values) {
    return static_cast<T*>(upload_bytes(values.data(), values.size() * sizeof(T)));
  }
  void* upload(const Bytes& bytes) { return upload_bytes(bytes.data(), bytes.size()); }
  // Into `values`, of the size that was uploaded.
  template <class T>
  void download(const T* from, std::vector<T>& values) {
    download_bytes(from, values.data(), values.size() * sizeof(T));
  }
  virtual void clear() = 0;

 protected:
  virtual void* upload_bytes(const void* data, size_t bytes) = 0;
  virtual void download_bytes(const void* from, void* to, size_t bytes) = 0;
};

}  // namespace nibble::cuda
