// Tensors of GPUs from rank to rank without a stop in the CPU's memory. NCCL is in
// nccl.cpp alone; a build without it has no_nccl.cpp, and no links.
//
// All calls are collective or in pairs, in the same order on every rank, like those of
// Ranks, and stand in the order of LibTorch's default stream, which training stays on.
// The bytes that arrive are those that were sent: what is added, and in which order, is
// the caller's.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "ptq/distributed/ranks.h"

namespace nibble {

class DeviceLink {
 public:
  // device: of this rank's tensors. Null, on every rank, where they go through the CPU: a
  // build without NCCL, one rank, tensors of a CPU, or a GPU that two ranks share, which
  // NCCL refuses. Collective. Throws nibble::Error (internal): what NCCL or CUDA says.
  static std::unique_ptr<DeviceLink> create(Ranks& ranks, at::Device device);
  virtual ~DeviceLink() = default;

  // Contiguous, of the device; shapes and types are agreed on.
  virtual void send(const at::Tensor& tensor, int to) = 0;
  virtual void receive(at::Tensor& tensor, int from) = 0;
  virtual void broadcast(at::Tensor& tensor, int from) = 0;
};

}  // namespace nibble
