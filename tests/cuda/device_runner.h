// Runs the CUDA kernels' calls on the GPU.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <map>

#include "kernels/cuda/memory.h"
#include "tests/kernels/cuda_runner.h"

namespace nibble::cuda {

class DeviceRunner : public Runner {
 public:
  Status run(const LinearCall& call, const LinearPlan& plan) override {
    return finished(run_linear(call, plan, nullptr));
  }
  Status run(const DequantizeCall& call) override {
    return finished(run_dequantize(call, nullptr));
  }
  Status run(const KvAttentionCall& call, const KvAttentionPlan& plan) override {
    return finished(run_kv_attention(call, plan, nullptr));
  }
  Status run(const RmsNormCall& call) override {
    return finished(run_rms_norm(call, nullptr));
  }
  Status run(const RopeCall& call) override { return finished(run_rope(call, nullptr)); }
  Status run(const QuantizeRowsCall& call) override {
    return finished(run_quantize_rows(call, nullptr));
  }
  Status run(const StoreKvCall& call) override {
    return finished(run_store_kv(call, nullptr));
  }
  Status run(const FakeQuantizeCall& call) override {
    return finished(run_fake_quantize(call, nullptr));
  }
  Status run(const FakeQuantizeGradientCall& call) override {
    return finished(run_fake_quantize_gradient(call, nullptr));
  }
  bool adds_exactly() const override { return false; }
  void clear() override { buffers_.clear(); }

 private:
  static Status finished(Status started) {
    return started.ok() ? synchronize() : started;
  }
  void* upload_bytes(const void* data, size_t bytes) override {
    Result<DeviceBuffer> buffer =
        bytes > 0 ? DeviceBuffer::copy_of(data, static_cast<int64_t>(bytes))
                  : DeviceBuffer::allocate(16);
    require(buffer.status());
    void* const at = buffer->data();
    buffers_[at] = std::move(*buffer);
    return at;
  }
  void download_bytes(const void* from, void* to, size_t bytes) override {
    if (bytes > 0) require(buffers_.at(from).download(to));
  }
  // Without memory or copies no test can go on.
  static void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s\n", status.message().c_str());
    std::exit(1);
  }
  std::map<const void*, DeviceBuffer> buffers_;
};

}  // namespace nibble::cuda
