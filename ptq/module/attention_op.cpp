#include "ptq/module/attention_op.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace nibble {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

MatrixView<const float> view(const Tensor& x) {
  const int64_t width = x.size(-1);
  return {x.const_data_ptr<float>(), x.numel() / width, width};
}
MatrixView<float> writable(Tensor& x) {
  const int64_t width = x.size(-1);
  return {x.mutable_data_ptr<float>(), x.numel() / width, width};
}

Tensor forward_of(const AttentionShape& shape, const Tensor& q, const Tensor& k,
                  const Tensor& v) {
  Tensor y = at::empty_like(q);
  const int64_t length = q.size(-2);
  const MatrixView<const float> queries = view(q), keys = view(k), values = view(v);
  const MatrixView<float> out = writable(y);
  const AttentionKernel& kernel = select_attention();
  const auto sequence = [length]<class T>(const MatrixView<T>& x, int64_t i) {
    return MatrixView<T>(x.row(i * length), length, x.cols, x.stride);
  };
  for (int64_t i = 0; i < queries.rows / length; ++i) {
    attention(kernel, shape, sequence(queries, i), sequence(keys, i), sequence(values, i),
              sequence(out, i));
  }
  return y;
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k,
                        const Tensor& v, const AttentionShape& shape) {
    ctx->save_for_backward({q, k, v});
    ctx->saved_data["heads"] = shape.heads;
    ctx->saved_data["kv_heads"] = shape.kv_heads;
    ctx->saved_data["head_dim"] = shape.head_dim;
    ctx->saved_data["scale"] = static_cast<double>(shape.scale);
    ctx->saved_data["window"] = shape.window;
    ctx->saved_data["causal"] = shape.causal;
    return forward_of(shape, q, k, v);
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list gradients) {
    const tensor_list saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    const Tensor dy = gradients[0].contiguous();
    AttentionShape shape;
    shape.heads = ctx->saved_data["heads"].toInt();
    shape.kv_heads = ctx->saved_data["kv_heads"].toInt();
    shape.head_dim = ctx->saved_data["head_dim"].toInt();
    shape.scale = static_cast<float>(ctx->saved_data["scale"].toDouble());
    shape.window = ctx->saved_data["window"].toInt();
    shape.causal = ctx->saved_data["causal"].toBool();
    Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
    attention_backward(select_attention(), shape, view(q).rows / q.size(-2), view(q),
                       view(k), view(v), view(dy), writable(dq), writable(dk),
                       writable(dv));
    return {dq, dk, dv, Tensor()};
  }
};

}  // namespace

Tensor attention_op(const AttentionShape& shape, const Tensor& q, const Tensor& k,
                    const Tensor& v) {
  const Tensor a = q.contiguous(), b = k.contiguous(), c = v.contiguous();
  const bool records = at::GradMode::is_enabled() &&
                       (a.requires_grad() || b.requires_grad() || c.requires_grad());
  return records ? Attention::apply(a, b, c, shape) : forward_of(shape, a, b, c);
}

}  // namespace nibble
