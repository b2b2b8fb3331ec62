#include "ptq/calibration/layer_rows.h"

#include <ATen/ATen.h>

namespace nibble {
namespace {

std::vector<int64_t> kernel_of(const Node& node, const Artifact& model) {
  const std::vector<int64_t>& shape = model.tensors.at(node.parameter("weight")).shape;
  return {shape.at(2), shape.at(3)};
}

}  // namespace

at::Tensor layer_rows(const Node& node, const Artifact& model, const at::Tensor& x) {
  if (node.op != "conv2d") return x.reshape({-1, x.size(-1)});
  const at::Tensor patches =  // [n, c * kh * kw, oh * ow]
      at::im2col(x, kernel_of(node, model), /*dilation=*/{1, 1},
                 node.integers("padding", {0, 0}), node.integers("stride", {1, 1}));
  return patches.transpose(1, 2).reshape({-1, patches.size(1)});
}

bool same_rows(const Node& a, const Node& b, const Artifact& model) {
  if (a.op != "conv2d" || b.op != "conv2d") return a.op == b.op;
  return kernel_of(a, model) == kernel_of(b, model) &&
         a.integers("padding", {0, 0}) == b.integers("padding", {0, 0}) &&
         a.integers("stride", {1, 1}) == b.integers("stride", {1, 1});
}

}  // namespace nibble
