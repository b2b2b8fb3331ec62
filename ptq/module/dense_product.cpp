#include "ptq/module/dense_product.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels/ops/gemm/gemm.h"

namespace nibble {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

bool is_plain(const Tensor& x) {
  return x.scalar_type() == at::kFloat && x.is_cpu() && x.dim() == 2 && x.numel() > 0;
}

// Either side may be a transpose; what is neither is copied into `held`.
GemmOperand operand(const Tensor& x, Tensor& held) {
  if (x.stride(1) == 1 && x.stride(0) >= x.size(1))
    return {{x.const_data_ptr<float>(), x.size(0), x.size(1), x.stride(0)}, false};
  if (x.stride(0) == 1 && x.stride(1) >= x.size(0))
    return {{x.const_data_ptr<float>(), x.size(1), x.size(0), x.stride(1)}, true};
  held = x.contiguous();
  return {{held.const_data_ptr<float>(), held.size(0), held.size(1)}, false};
}

Tensor product(const Tensor& a, const Tensor& b) {
  Tensor held_a, held_b;
  Tensor y = at::empty({a.size(0), b.size(1)}, a.options());
  gemm(select_gemm(), operand(a, held_a), operand(b, held_b),
       {y.mutable_data_ptr<float>(), y.size(0), y.size(1)});
  return y;
}

// A pass with gradients and one without must give the same bits: blocks that run again in
// the backward pass do.
class Product : public torch::autograd::Function<Product> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& a, const Tensor& b) {
    ctx->save_for_backward({a, b});
    return product(a, b);
  }
  static tensor_list backward(AutogradContext* ctx, tensor_list gradients) {
    const tensor_list saved = ctx->get_saved_variables();
    const Tensor& y = gradients[0];
    return {ctx->needs_input_grad(0) ? product(y, saved[1].t()) : Tensor(),
            ctx->needs_input_grad(1) ? product(saved[0].t(), y) : Tensor()};
  }
};

}  // namespace

Tensor dense_mm(const Tensor& a, const Tensor& b) {
  if (!is_plain(a) || !is_plain(b) || a.size(1) != b.size(0)) return at::mm(a, b);
  const bool records =
      at::GradMode::is_enabled() && (a.requires_grad() || b.requires_grad());
  return records ? Product::apply(a, b) : product(a, b);
}

Tensor dense_linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (x.dim() < 2 || !is_plain(weight) || x.size(-1) != weight.size(1) ||
      x.scalar_type() != at::kFloat || !x.is_cpu() || x.numel() == 0) {
    return at::linear(x, weight, bias);
  }
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(0);
  const Tensor y = dense_mm(x.reshape({-1, x.size(-1)}), weight.t()).view(shape);
  return bias.defined() ? y + bias : y;
}

}  // namespace nibble
