#include "ptq/module/torch_ops.h"

#include <ATen/ATen.h>

#include <cmath>
#include <optional>

#include "kernels/program/layers.h"
#include "kernels/program/rope_attributes.h"
#include "ptq/module/attention_op.h"
#include "ptq/module/dense_product.h"
#include "ptq/module/fused_ops.h"
#include "ptq/module/mixture.h"
#include "ptq/module/packed_linear.h"

namespace nibble {
namespace {

using torch::Tensor;

Tensor run_embedding(const TorchOpCall& call) {
  return at::embedding(call.parameter("weight"), call.inputs[0]);
}

// Row t for position t, the same for every sequence of the batch.
Tensor run_position_embedding(const TorchOpCall& call) {
  const Tensor& ids = call.inputs[0];
  const Tensor rows = call.parameter("weight").narrow(0, 0, ids.size(-1));
  std::vector<int64_t> shape = ids.sizes().vec();
  shape.push_back(rows.size(1));
  return rows.expand(shape);
}

Tensor product(const TorchOpCall& call, const Tensor& x, const Tensor& weight) {
  if (!call.bf16_products) return dense_linear(x, weight);
  return at::linear(x.to(at::kBFloat16), weight.to(at::kBFloat16)).to(at::kFloat);
}

Tensor run_linear(const TorchOpCall& call) {
  const Tensor bias = call.parameter("bias");
  if (call.packed == nullptr && !call.bf16_products)
    return dense_linear(call.inputs[0], call.parameter("weight"), bias);
  const Tensor y = call.packed != nullptr
                       ? packed_linear(call.inputs[0], call.packed, call.bf16_products)
                       : product(call, call.inputs[0], call.parameter("weight"));
  return bias.defined() ? y + bias : y;
}

Tensor run_rms_norm(const TorchOpCall& call) {
  const Tensor& x = call.inputs[0];
  const int64_t head_dim = call.node.integer("head_dim", x.size(-1));
  return rms_norm(x.reshape({-1, head_dim}), call.parameter("weight"),
                  call.node.number("epsilon", 1e-5))
      .reshape(x.sizes());
}

Tensor run_layer_norm(const TorchOpCall& call) {
  const Tensor weight = call.parameter("weight");
  return at::layer_norm(call.inputs[0], weight.sizes(), weight, call.parameter("bias"),
                        call.node.number("epsilon", 1e-5));
}

Tensor run_rope(const TorchOpCall& call) {
  return rope(call.inputs[0], rope_frequencies(rope_shape(call.node)),
              call.node.integer("interleaved", 0) != 0);
}

Tensor run_attention(const TorchOpCall& call) {
  const Node& node = call.node;
  const int64_t heads = node.integer("heads", 0);
  const int64_t kv_heads = node.integer("kv_heads", heads);
  const int64_t head_dim = node.integer("head_dim", 0);
  const double scale =
      node.number("scale", 1.0 / std::sqrt(static_cast<double>(head_dim)));
  const Tensor& q = call.inputs[0];
  const int64_t length = q.size(-2);
  const bool causal = node.integer("causal", 1) != 0;
  const auto plain = [](const Tensor& x) {
    return x.is_cpu() && x.scalar_type() == at::kFloat && x.numel() > 0;
  };
  if (plain(q) && plain(call.inputs[1]) && plain(call.inputs[2]) &&
      call.inputs[1].size(-2) == length) {
    return attention_op({.heads = heads,
                         .kv_heads = kv_heads,
                         .head_dim = head_dim,
                         .scale = static_cast<float>(scale),
                         .window = causal ? node.integer("window", 0) : 0,
                         .causal = causal},
                        q, call.inputs[1], call.inputs[2]);
  }
  auto split = [&](const Tensor& x, int64_t count) {
    return x.reshape({-1, length, count, head_dim}).transpose(1, 2);
  };
  // A window no shorter than the sequence hides nothing.
  const int64_t window = node.integer("window", 0);
  const bool windowed = window > 0 && window < length;
  std::optional<Tensor> mask;
  if (windowed) {
    mask =
        at::ones({length, length}, q.options().dtype(at::kBool)).tril().triu(1 - window);
  }
  Tensor y = at::scaled_dot_product_attention(
      split(q, heads), split(call.inputs[1], kv_heads), split(call.inputs[2], kv_heads),
      mask, /*dropout_p=*/0.0,
      /*is_causal=*/!windowed && causal, scale,
      /*enable_gqa=*/heads != kv_heads);
  return y.transpose(1, 2).reshape(q.sizes());
}

Tensor run_moe(const TorchOpCall& call) {
  const Tensor x = call.inputs[0].reshape({-1, call.inputs[0].size(-1)});
  const Routing routing = route(call.node, call.inputs[1]);
  Tensor y = at::zeros_like(x);
  const std::vector<Layer> layers =
      layers_of(call.node);  // gate, up, down of each expert
  for (size_t i = 0; i < layers.size(); i += 3) {
    const auto [tokens, places] = tokens_of(routing.chosen, static_cast<int64_t>(i / 3));
    if (tokens.numel() == 0) continue;
    const Tensor mine = x.index_select(0, tokens);
    const Tensor hidden = at::silu(product(call, mine, call.parameter(layers[i].role))) *
                          product(call, mine, call.parameter(layers[i + 1].role));
    const Tensor out = product(call, hidden, call.parameter(layers[i + 2].role));
    const Tensor counts = routing.weights.index({tokens, places}).unsqueeze(1);
    y = y.index_add(0, tokens, out * counts);
  }
  return y.reshape(call.inputs[0].sizes());
}

Tensor run_silu_mul(const TorchOpCall& call) {
  return at::silu(call.inputs[0]) * call.inputs[1];
}

Tensor run_gelu(const TorchOpCall& call) {
  return at::gelu(call.inputs[0], call.node.integer("tanh", 0) != 0 ? "tanh" : "none");
}

Tensor run_add(const TorchOpCall& call) { return call.inputs[0] + call.inputs[1]; }

Tensor run_conv2d(const TorchOpCall& call) {
  const Node& node = call.node;
  const bool bf16 = call.bf16_products;
  const auto operand = [bf16](const Tensor& x) {
    return bf16 && x.defined() ? x.to(at::kBFloat16) : x;
  };
  const Tensor y =
      at::conv2d(operand(call.inputs[0]), operand(call.parameter("weight")),
                 operand(call.parameter("bias")), node.integers("stride", {1, 1}),
                 node.integers("padding", {0, 0}),
                 /*dilation=*/{1, 1}, node.integer("groups", 1));
  return bf16 ? y.to(at::kFloat) : y;
}

Tensor run_batch_norm(const TorchOpCall& call) {
  return at::batch_norm(call.inputs[0], call.parameter("weight"), call.parameter("bias"),
                        call.parameter("running_mean"), call.parameter("running_var"),
                        call.training, kBatchNormMomentum,
                        call.node.number("epsilon", 1e-5),
                        /*cudnn_enabled=*/false);
}

Tensor run_relu(const TorchOpCall& call) { return at::relu(call.inputs[0]); }

Tensor run_leaky_relu(const TorchOpCall& call) {
  return at::leaky_relu(call.inputs[0], call.node.number("slope", 0.01));
}

Tensor run_shortcut_pad(const TorchOpCall& call) {
  const int64_t stride = call.node.integer("stride", 1);
  Tensor x = call.inputs[0];
  if (stride != 1) x = x.slice(2, 0, INT64_MAX, stride).slice(3, 0, INT64_MAX, stride);
  return at::constant_pad_nd(x, {0, 0, 0, 0, call.node.integer("pad_before", 0),
                                 call.node.integer("pad_after", 0)});
}

Tensor run_global_average_pool(const TorchOpCall& call) {
  return call.inputs[0].mean({2, 3});
}

Tensor run_max_pool(const TorchOpCall& call) {
  const Node& node = call.node;
  return at::max_pool2d(call.inputs[0], node.integers("kernel", {1, 1}),
                        node.integers("stride", {1, 1}), node.integers("padding", {0, 0}));
}

Tensor run_concat(const TorchOpCall& call) { return at::cat(call.inputs, 1); }

Tensor run_softmax(const TorchOpCall& call) { return at::softmax(call.inputs[0], -1); }

Tensor run_flatten(const TorchOpCall& call) { return call.inputs[0].flatten(1); }

Tensor run_mean_pool(const TorchOpCall& call) { return call.inputs[0].mean(-2); }

Tensor run_first_token(const TorchOpCall& call) { return call.inputs[0].select(-2, 0); }

Tensor run_l2_normalize(const TorchOpCall& call) {
  const Tensor& x = call.inputs[0];
  return x / at::linalg_vector_norm(x, 2, {-1}, /*keepdim=*/true).clamp_min(1e-12);
}

Tensor run_hadamard(const TorchOpCall& call) {
  return hadamard(call.inputs[0], call.node.integer("block", 1));
}

Tensor run_mul(const TorchOpCall& call) { return call.inputs[0] * call.inputs[1]; }

// At 0 the slope is infinite, and what made the 0 (a square) has slope 0: their product
// would be NaN. 0 is taken for it.
Tensor run_sqrt(const TorchOpCall& call) {
  const Tensor& x = call.inputs[0];
  const Tensor is_zero = x == 0;
  return at::sqrt(x.masked_fill(is_zero, 1)).masked_fill(is_zero, 0);
}

Tensor run_sigmoid(const TorchOpCall& call) { return at::sigmoid(call.inputs[0]); }

Tensor run_reshape(const TorchOpCall& call) {
  std::vector<int64_t> shape = call.node.integers("shape", {});
  shape.insert(shape.begin(), call.inputs[0].size(0));
  return call.inputs[0].reshape(shape);
}

Tensor run_transpose(const TorchOpCall& call) {
  return call.inputs[0].permute(call.node.integers("perm", {}));
}

Tensor run_slice(const TorchOpCall& call) {
  const Node& node = call.node;
  return call.inputs[0].slice(node.integer("axis", 0), node.integer("start", 0),
                              node.integer("end", 0), node.integer("step", 1));
}

// reflection_pad1d takes two or three axes.
Tensor run_reflect_pad(const TorchOpCall& call) {
  const Tensor& x = call.inputs[0];
  const Tensor padded = at::reflection_pad1d(
      x.reshape({-1, x.size(-1)}),
      {call.node.integer("before", 0), call.node.integer("after", 0)});
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = padded.size(-1);
  return padded.reshape(shape);
}

Tensor run_lstm(const TorchOpCall& call) {
  const Tensor &x = call.inputs[0], over_h = call.parameter("weight_hh");
  const Tensor bias = call.parameter("bias");
  const bool begins = call.inputs.size() > 1;
  const Tensor zeros = at::zeros({x.size(0), over_h.size(1)}, x.options());
  Tensor h = begins ? call.inputs[1] : zeros, c = begins ? call.inputs[2] : zeros;
  const Tensor over_x = at::linear(x, call.parameter("weight_ih"), bias);
  std::vector<Tensor> steps;
  for (int64_t t = 0; t < x.size(1); ++t) {
    const std::vector<Tensor> gates =
        (over_x.select(1, t) + at::linear(h, over_h)).chunk(4, -1);
    c = at::sigmoid(gates[2]) * c + at::sigmoid(gates[0]) * at::tanh(gates[3]);
    h = at::sigmoid(gates[1]) * at::tanh(c);
    steps.push_back(h);
  }
  steps.push_back(c);
  return at::stack(steps, 1);
}

}  // namespace

const std::vector<TorchOp>& torch_ops() {
  static const std::vector<TorchOp> table = {
#define NIBBLE_TORCH_OP(op) TorchOp{.name = #op, .run = run_##op},
#include "ptq/module/torch_ops.inc"
#undef NIBBLE_TORCH_OP
  };
  return table;
}

const TorchOp* find_torch_op(std::string_view name) {
  for (const TorchOp& op : torch_ops()) {
    if (op.name == name) return &op;
  }
  return nullptr;
}

}  // namespace nibble
