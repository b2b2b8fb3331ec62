#include "kernels/runtime/signal_step.h"

#include <algorithm>

#include "kernels/ops/elementwise/elementwise.h"
#include "kernels/ops/reorder/reorder.h"
#include "kernels/program/shape.h"

namespace nibble {
namespace {

int64_t product(std::vector<int64_t>::const_iterator first,
                std::vector<int64_t>::const_iterator last) {
  int64_t sizes = 1;
  for (; first != last; ++first) sizes *= *first;
  return sizes;
}

}  // namespace

bool run_signal(const Step& step, int64_t n, const std::vector<const float*>& inputs,
                float* y) {
  const Node& node = *step.node;
  const float* x = inputs[0];
  const int64_t size = n * step.features;
  std::vector<int64_t> shape = step.full_shape;
  for (int64_t& dim : shape) dim = dim == kUnknownSize ? n : dim;
  if (node.op == "mul") {
    mul(x, inputs[1], size, y);
  } else if (node.op == "sqrt") {
    square_root(x, size, y);
  } else if (node.op == "sigmoid") {
    sigmoid(x, size, y);
  } else if (node.op == "reshape") {
    std::copy_n(x, size, y);
  } else if (node.op == "transpose") {
    transpose(x, shape, node.integers("perm", {}), y);
  } else if (node.op == "slice") {
    const int64_t axis = node.integer("axis", 0), start = node.integer("start", 0),
                  by = node.integer("step", 1);
    const auto at = shape.begin() + axis;
    take_slice({.outer = product(shape.begin(), at),
                .size = *at,
                .inner = product(at + 1, shape.end()),
                .start = start,
                .step = by,
                .count = (node.integer("end", 0) - start + by - 1) / by},
               x, y);
  } else if (node.op == "reflect_pad") {
    reflect_pad(x, product(shape.begin(), shape.end() - 1), shape.back(),
                node.integer("before", 0), node.integer("after", 0), y);
  } else if (node.op == "lstm") {
    const bool begins = inputs.size() > 1;
    step.lstm->run(n, shape[1], x, begins ? inputs[1] : nullptr,
                   begins ? inputs[2] : nullptr, y);
  } else {
    return false;
  }
  return true;
}

}  // namespace nibble
