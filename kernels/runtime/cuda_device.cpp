#include "kernels/runtime/cuda_device.h"

#include <algorithm>

namespace nibble::cuda {

Result<std::unique_ptr<DeviceRunner>> DeviceRunner::create(bool waits, int device) {
  auto runner = std::make_unique<DeviceRunner>();
  NIBBLE_RETURN_IF_ERROR(use_device(device));
  NIBBLE_ASSIGN_OR_RETURN(runner->info_, device_info());
  NIBBLE_ASSIGN_OR_RETURN(runner->stream_, Stream::create());
  runner->waits_ = waits;
  return runner;
}

Status DeviceRunner::finished(Status started) const {
  return started.ok() && waits_ ? stream_.synchronize() : started;
}

Status DeviceRunner::run(const LinearCall& call, const LinearPlan& plan) {
  return finished(run_linear(call, plan, stream_.handle()));
}
Status DeviceRunner::run(const PlainLinearCall& call) {
  return finished(run_plain_linear(call, stream_.handle()));
}
Status DeviceRunner::run(const DequantizeCall& call) {
  return finished(run_dequantize(call, stream_.handle()));
}
Status DeviceRunner::run(const UnpackCodesCall& call) {
  return finished(run_unpack_codes(call, stream_.handle()));
}
Status DeviceRunner::run(const EpilogueCall& call) {
  return finished(run_epilogue(call, stream_.handle()));
}
Status DeviceRunner::run(const ProductCall& call) {
  if (!blas_) {
    NIBBLE_ASSIGN_OR_RETURN(blas_, Blas::create());
  }
  return finished(blas_->multiply(call, stream_.handle()));
}
Status DeviceRunner::run(const KvAttentionCall& call, const KvAttentionPlan& plan) {
  return finished(run_kv_attention(call, plan, stream_.handle()));
}
Status DeviceRunner::run(const RmsNormCall& call) {
  return finished(run_rms_norm(call, stream_.handle()));
}
Status DeviceRunner::run(const RopeCall& call) {
  return finished(run_rope(call, stream_.handle()));
}
Status DeviceRunner::run(const QuantizeRowsCall& call) {
  return finished(run_quantize_rows(call, stream_.handle()));
}
Status DeviceRunner::run(const StoreKvCall& call) {
  return finished(run_store_kv(call, stream_.handle()));
}
Status DeviceRunner::run(const EmbeddingCall& call) {
  return finished(run_embedding(call, stream_.handle()));
}
Status DeviceRunner::run(const SiluMulCall& call) {
  return finished(run_silu_mul(call, stream_.handle()));
}
Status DeviceRunner::run(const AddCall& call) {
  return finished(run_elementwise(call, stream_.handle()));
}
Status DeviceRunner::run(const NextTokenCall& call) {
  return finished(run_next_token(call, stream_.handle()));
}
Status DeviceRunner::run(const FakeQuantizeCall& call) {
  return finished(run_fake_quantize(call, stream_.handle()));
}
Status DeviceRunner::run(const FakeQuantizeGradientCall& call) {
  return finished(run_fake_quantize_gradient(call, stream_.handle()));
}

Result<std::function<Status()>> DeviceRunner::record(std::function<Status()> calls) {
  const bool waits = std::exchange(waits_, false);  // which a graph cannot hold
  Result<Graph> graph = Graph::capture(stream_.handle(), calls);
  waits_ = waits;
  NIBBLE_RETURN_IF_ERROR(graph.status());
  auto shared = std::make_shared<Graph>(std::move(*graph));
  return std::function<Status()>(
      [this, shared] { return finished(shared->launch(stream_.handle())); });
}

Result<void*> DeviceRunner::allocate(int64_t bytes) {
  NIBBLE_ASSIGN_OR_RETURN(DeviceBuffer buffer,
                          DeviceBuffer::allocate(std::max<int64_t>(bytes, 16)));
  void* const at = buffer.data();
  buffers_[at] = std::move(buffer);
  return at;
}
Status DeviceRunner::copy_in(void* to, const void* from, int64_t bytes) {
  return bytes == 0 ? ok_status() : cuda::copy_in(to, from, bytes, stream_.handle());
}
Status DeviceRunner::copy_out(void* to, const void* from, int64_t bytes) {
  return bytes == 0 ? ok_status() : cuda::copy_out(to, from, bytes, stream_.handle());
}

}  // namespace nibble::cuda
