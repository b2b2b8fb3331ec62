#include "ptq/module/dense_product.h"

#include <ATen/ATen.h>

#include "kernels/ops/gemm/gemm.h"

namespace nibble {
namespace {

bool is_plain(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat && x.is_cpu() && !x.is_neg();
}

bool asks_gradient(const at::Tensor& x) {
  return at::GradMode::is_enabled() && x.requires_grad();
}

// Either side may be a transpose; what is neither is copied into `held`.
GemmOperand operand(const at::Tensor& x, at::Tensor& held) {
  if (x.stride(1) == 1 && x.stride(0) >= x.size(1))
    return {{x.const_data_ptr<float>(), x.size(0), x.size(1), x.stride(0)}, false};
  if (x.stride(0) == 1 && x.stride(1) >= x.size(0))
    return {{x.const_data_ptr<float>(), x.size(1), x.size(0), x.stride(1)}, true};
  held = x.contiguous();
  return {{held.const_data_ptr<float>(), held.size(0), held.size(1)}, false};
}

}  // namespace

at::Tensor dense_mm(const at::Tensor& a, const at::Tensor& b) {
  if (!is_plain(a) || !is_plain(b) || asks_gradient(a) || asks_gradient(b) ||
      a.dim() != 2 || b.dim() != 2 || a.size(1) != b.size(0) || a.numel() == 0 ||
      b.numel() == 0) {
    return at::mm(a, b);
  }
  at::Tensor held_a, held_b;
  at::Tensor y = at::empty({a.size(0), b.size(1)}, a.options());
  gemm(select_gemm(), operand(a, held_a), operand(b, held_b),
       {y.mutable_data_ptr<float>(), y.size(0), y.size(1)});
  return y;
}

at::Tensor dense_linear(const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& bias) {
  if (!is_plain(x) || !is_plain(weight) || asks_gradient(x) || asks_gradient(weight) ||
      (bias.defined() && asks_gradient(bias)) || x.dim() < 2 || weight.dim() != 2 ||
      x.size(-1) != weight.size(1) || x.numel() == 0) {
    return at::linear(x, weight, bias);
  }
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(0);
  at::Tensor y = dense_mm(x.reshape({-1, x.size(-1)}), weight.t());
  if (bias.defined()) y.add_(bias);
  return y.view(shape);
}

}  // namespace nibble
