#include "ptq/methods/hessian.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "ptq/one_thread.h"

namespace nibble {
namespace {

// Rows of H made by one product. Small enough that half of H is never computed, large
// enough for a matrix product to run at speed.
constexpr int64_t kPanel = 128;

}  // namespace

Hessian::Hessian(int64_t columns)
    : columns_(columns), upper_(at::zeros({columns, columns}, at::kDouble)) {}

void Hessian::accumulate(const at::Tensor& inputs, const at::Tensor& float_inputs) {
  const OneThread one_thread;
  tokens_ += inputs.size(0);
  at::Tensor difference;
  if (float_inputs.defined()) {
    difference = float_inputs - inputs;
    if (!drift_.defined()) drift_ = at::zeros({columns_, columns_}, at::kDouble);
  }
  in_parallel((columns_ + kPanel - 1) / kPanel, [&](int64_t panel) {
    const int64_t begin = panel * kPanel;
    const int64_t rows = std::min(kPanel, columns_ - begin);
    const at::Tensor left = inputs.narrow(1, begin, rows).t();
    upper_.narrow(0, begin, rows)
        .narrow(1, begin, columns_ - begin)
        .add_(at::mm(left, inputs.narrow(1, begin, columns_ - begin)));
    if (difference.defined()) {
      drift_.narrow(0, begin, rows)
          .add_(at::mm(difference.narrow(1, begin, rows).t(), inputs));
    }
  });
}

at::Tensor Hessian::matrix() const {
  const at::Tensor upper = upper_.triu();
  return upper + upper.triu(1).t();
}

}  // namespace nibble
