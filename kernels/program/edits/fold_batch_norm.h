// Folds a batch norm into the convolution or linear layer before it.
//
//   g[o]  = gamma[o] / sqrt(var[o] + epsilon)
//   W'[o] = W[o] * g[o],   b'[o] = (b[o] - mean[o]) * g[o] + beta[o]     (b = 0 without a
//   bias)
//
// in double, rounded once to f32. A batch norm is folded when it is the sole consumer of
// the layer's value and no other node names the layer's tensors; others stay. Its node
// goes; the layer's node now makes the batch norm's value, so what comes after reads as
// before. A layer without a bias gets "<node>.bias".
//
// not_found / unsupported: a tensor that is missing or not float (named).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/program/program.h"

namespace nibble {

struct FoldedTensor {
  std::string tensor;  // "layer1.0.bn1.weight": no longer in the program
  std::string into;    // "layer1.0.conv1.weight" or ".bias": what carries it now
  int64_t parameters = 0;
  bool operator==(const FoldedTensor&) const = default;
};

struct FoldedModel {
  Program program;
  std::map<std::string, Tensor> tensors;  // folded ones removed
  std::vector<FoldedTensor> folded;       // for the ledger, in program order
};
Result<FoldedModel> fold_batch_norm(const Program& program,
                                    const std::map<std::string, Tensor>& tensors);

}  // namespace nibble
