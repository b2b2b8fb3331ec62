// One node of a Program with LibTorch: the table that ProgramModule runs, keyed by the
// op.
//
// A row's formula is the op's in kernels/program/ops.inc, in float32, with gradients.
// Safe to call from any thread (batch_norm in training writes its running statistics).
#pragma once

#include <torch/types.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/packing/packed_tensor.h"
#include "kernels/program/program.h"

namespace nibble {

struct TorchOpCall {
  const Node& node;
  const std::vector<torch::Tensor>& inputs;
  std::map<std::string, torch::Tensor> parameters;  // by role, weights already quantized
  bool training = false;                            // batch_norm: batch statistics
  bool bf16_products = false;                       // linear, moe: operands in bf16
  // linear: its weight, where it stays packed.
  std::shared_ptr<const PackedTensor> packed = nullptr;

  torch::Tensor parameter(const std::string& role) const {
    auto found = parameters.find(role);
    return found == parameters.end() ? torch::Tensor() : found->second;
  }
};

// Of batch_norm's running statistics: r' = (1 - m) r + m s, torch.nn.BatchNorm2d's
// default.
inline constexpr double kBatchNormMomentum = 0.1;

struct TorchOp {
  const char* name;
  torch::Tensor (*run)(const TorchOpCall& call);
};
const std::vector<TorchOp>& torch_ops();
const TorchOp* find_torch_op(std::string_view name);  // nullptr: no row

}  // namespace nibble
