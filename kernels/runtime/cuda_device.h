// Runs the CUDA kernels' calls on a GPU, on a stream of its own.
//
// unsupported: no CUDA in this build, or no such device. Used from the thread that made
// it, one call at a time: its device is that thread's current one.
#pragma once

#include <map>
#include <memory>
#include <optional>

#include "kernels/cuda/memory.h"
#include "kernels/runtime/cuda_runner.h"

namespace nibble::cuda {

class DeviceRunner : public Runner {
 public:
  // waits: after every call, so that its error is that call's.
  static Result<std::unique_ptr<DeviceRunner>> create(bool waits = false, int device = 0);
  Status run(const LinearCall& call, const LinearPlan& plan) override;
  Status run(const PlainLinearCall& call) override;
  Status run(const DequantizeCall& call) override;
  Status run(const UnpackCodesCall& call) override;
  Status run(const EpilogueCall& call) override;
  Status run(const ProductCall& call) override;
  bool has_products() const override { return Blas::is_there(); }
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

  const DeviceInfo& info() const { return info_; }
  std::string name() const override { return info_.name; }
  int multiprocessors() const override { return info_.multiprocessors; }
  bool adds_exactly() const override { return false; }
  Result<std::function<Status()>> record(std::function<Status()> calls) override;
  Result<void*> allocate(int64_t bytes) override;
  Status copy_in(void* to, const void* from, int64_t bytes) override;
  Status copy_out(void* to, const void* from, int64_t bytes) override;
  Status synchronize() { return stream_.synchronize(); }
  void clear() override { buffers_.clear(); }

 private:
  Status finished(Status started) const;
  DeviceInfo info_;
  Stream stream_;
  std::optional<Blas> blas_;  // from its first product on
  bool waits_ = false;
  std::map<const void*, DeviceBuffer> buffers_;
};

}  // namespace nibble::cuda
