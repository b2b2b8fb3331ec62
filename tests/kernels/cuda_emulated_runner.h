// Runs the CUDA kernels' calls under the emulator, every array at the end of its pages.
#pragma once

#include <memory>
#include <vector>

#include "cuda_emulator.h"
#include "kernels/runtime/cuda_runner.h"

namespace nibble::cuda {

class EmulatedRunner : public Runner {
 public:
  explicit EmulatedRunner(Order order = Order::forward) : emulator_{order} {}
  Status run(const LinearCall& call, const LinearPlan& plan) override;
  Status run(const PlainLinearCall& call) override;
  Status run(const DequantizeCall& call) override;
  Status run(const UnpackCodesCall& call) override;
  Status run(const EpilogueCall& call) override;
  Status run(const ProductCall& call) override;  // by plain loops
  bool has_products() const override { return true; }
  Status run(const KvAttentionCall& call, const KvAttentionPlan& plan) override;
  Status run(const RmsNormCall& call) override;
  Status run(const RopeCall& call) override;
  Status run(const QuantizeRowsCall& call) override;
  Status run(const StoreKvCall& call) override;
  Status run(const EmbeddingCall& call) override;
  Status run(const SiluMulCall& call) override;
  Status run(const AddCall& call) override;
  Status run(const NextTokenCall& call) override;
  Status run(const FakeQuantizeCall& call) override;
  Status run(const FakeQuantizeGradientCall& call) override;

  std::string name() const override { return "the emulator"; }
  int multiprocessors() const override { return 3; }
  bool adds_exactly() const override { return true; }
  Result<std::function<Status()>> record(std::function<Status()> calls) override {
    return calls;
  }
  Result<void*> allocate(int64_t bytes) override {
    arrays_.push_back(std::make_unique<GuardedBytes>(bytes));
    return static_cast<void*>(arrays_.back()->data());
  }
  Status copy_in(void* to, const void* from, int64_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
    return ok_status();
  }
  Status copy_out(void* to, const void* from, int64_t bytes) override {
    return copy_in(to, from, bytes);
  }
  void clear() override { arrays_.clear(); }

 private:
  Emulator emulator_;
  std::vector<std::unique_ptr<GuardedBytes>> arrays_;
};

}  // namespace nibble::cuda
