// Runs the CUDA kernels' calls under the emulator, every array at the end of its pages.
#pragma once

#include <memory>
#include <vector>

#include "cuda_emulator.h"
#include "cuda_runner.h"

namespace nibble::cuda {

class EmulatedRunner : public Runner {
 public:
  explicit EmulatedRunner(Order order = Order::forward) : emulator_{order} {}
  Status run(const LinearCall& call, const LinearPlan& plan) override;
  Status run(const DequantizeCall& call) override;
  Status run(const KvAttentionCall& call, const KvAttentionPlan& plan) override;
  Status run(const RmsNormCall& call) override;
  Status run(const RopeCall& call) override;
  Status run(const QuantizeRowsCall& call) override;
  Status run(const StoreKvCall& call) override;
  Status run(const FakeQuantizeCall& call) override;
  Status run(const FakeQuantizeGradientCall& call) override;
  bool adds_exactly() const override { return true; }
  void clear() override { arrays_.clear(); }

 private:
  void* upload_bytes(const void* data, size_t bytes) override {
    arrays_.push_back(std::make_unique<GuardedBytes>(static_cast<int64_t>(bytes)));
    if (bytes > 0) std::memcpy(arrays_.back()->data(), data, bytes);
    return arrays_.back()->data();
  }
  void download_bytes(const void* from, void* to, size_t bytes) override {
    std::memcpy(to, from, bytes);
  }
  Emulator emulator_;
  std::vector<std::unique_ptr<GuardedBytes>> arrays_;
};

}  // namespace nibble::cuda
