#include "ptq/module/packed_linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ptq/error.h"
#include "ptq/module/dense_product.h"

namespace nibble {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

struct Holder : torch::CustomClassHolder {
  Holder(std::shared_ptr<const PackedTensor> p, bool b) : packed(std::move(p)), bf16(b) {}
  std::shared_ptr<const PackedTensor> packed;
  bool bf16;
  Tensor weight(at::Device device) const {
    const Tensor w = dequantized(*packed).to(device);
    return bf16 ? w.to(at::kBFloat16) : w;
  }
  Tensor operand(const Tensor& x) const { return bf16 ? x.to(at::kBFloat16) : x; }
};

class PackedLinear : public torch::autograd::Function<PackedLinear> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x,
                        c10::intrusive_ptr<Holder> holder) {
    ctx->saved_data["holder"] = torch::IValue::make_capsule(holder);
    return dense_linear(holder->operand(x), holder->weight(x.device())).to(at::kFloat);
  }
  static tensor_list backward(AutogradContext* ctx, tensor_list gradients) {
    auto holder =
        c10::static_intrusive_pointer_cast<Holder>(ctx->saved_data["holder"].toCapsule());
    const Tensor& y = gradients[0];
    const Tensor w = holder->weight(y.device());
    std::vector<int64_t> shape = y.sizes().vec();
    shape.back() = w.size(1);
    const Tensor rows = holder->operand(y).reshape({-1, w.size(0)});
    return {dense_mm(rows, w).to(at::kFloat).view(shape), Tensor()};
  }
};

}  // namespace

torch::Tensor dequantized(const PackedTensor& packed) {
  torch::Tensor weight = at::empty(packed.shape, at::kFloat);
  throw_if_error(dequantize_rows(
      packed, 0,
      MatrixView<float>(weight.mutable_data_ptr<float>(), packed.rows, packed.cols)));
  return weight;
}

torch::Tensor packed_linear(const torch::Tensor& x,
                            std::shared_ptr<const PackedTensor> packed, bool bf16) {
  return PackedLinear::apply(x, c10::make_intrusive<Holder>(std::move(packed), bf16));
}

}  // namespace nibble
