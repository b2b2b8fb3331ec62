#include "ptq/module/fused_ops.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <vector>

#include "kernels/ops/hadamard/hadamard.h"

namespace nibble {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// Eight partial sums let the compiler use vectors without reordering anything at run
// time.
constexpr int64_t kLanes = 8;
constexpr int64_t kRowsPerChunk = 64;  // rows of one task; dw has one partial sum a chunk

template <class Term>
float sum_of(int64_t n, Term term) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += term(i + l);
  }
  for (int64_t l = 0; i + l < n; ++l) lanes[l] += term(i + l);
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

int64_t chunks_of(int64_t rows) { return (rows + kRowsPerChunk - 1) / kRowsPerChunk; }

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x_any,
                        const Tensor& weight_any, double epsilon) {
    const Tensor x = x_any.contiguous();
    const Tensor weight = weight_any.contiguous();
    const int64_t dim = x.size(-1);
    const int64_t rows = x.numel() / dim;
    Tensor y = at::empty_like(x);
    Tensor inverse = at::empty({rows}, x.options());
    const float* xs = x.const_data_ptr<float>();
    const float* w = weight.const_data_ptr<float>();
    float* ys = y.mutable_data_ptr<float>();
    float* rs = inverse.mutable_data_ptr<float>();
    at::parallel_for(0, rows, kRowsPerChunk, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const float* a = xs + row * dim;
        float* out = ys + row * dim;
        const float squares = sum_of(dim, [&](int64_t i) { return a[i] * a[i]; });
        const float r = 1.0f / std::sqrt(squares / static_cast<float>(dim) +
                                         static_cast<float>(epsilon));
        rs[row] = r;
        for (int64_t i = 0; i < dim; ++i) out[i] = a[i] * r * w[i];
      }
    });
    ctx->save_for_backward({x, weight, inverse});
    return y;
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list gradients) {
    auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &inverse = saved[2];
    const Tensor dy = gradients[0].contiguous();
    const int64_t dim = x.size(-1);
    const int64_t rows = x.numel() / dim;
    const int64_t chunks = chunks_of(rows);
    Tensor dx = at::empty_like(x);
    Tensor partial = at::zeros({chunks, dim}, x.options());
    const float* xs = x.const_data_ptr<float>();
    const float* w = weight.const_data_ptr<float>();
    const float* rs = inverse.const_data_ptr<float>();
    const float* dys = dy.const_data_ptr<float>();
    float* dxs = dx.mutable_data_ptr<float>();
    float* dws = partial.mutable_data_ptr<float>();
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        float* dw = dws + chunk * dim;
        const int64_t last = std::min(rows, (chunk + 1) * kRowsPerChunk);
        for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
          const float* a = xs + row * dim;
          const float* d = dys + row * dim;
          float* out = dxs + row * dim;
          const float r = rs[row];
          const float dot = sum_of(dim, [&](int64_t i) { return d[i] * w[i] * a[i]; });
          const float pull = r * r * dot / static_cast<float>(dim);
          for (int64_t i = 0; i < dim; ++i) {
            out[i] = r * (d[i] * w[i] - a[i] * pull);
            dw[i] += d[i] * a[i] * r;
          }
        }
      }
    });
    return {dx, partial.sum(0), Tensor()};
  }
};

// cos and sin of every position and pair: [length, head_dim / 2] each.
struct Turn {
  std::vector<float> cos, sin;
};
Turn turns(int64_t length, const std::vector<double>& frequencies) {
  const int64_t half = static_cast<int64_t>(frequencies.size());
  Turn turn{std::vector<float>(length * half), std::vector<float>(length * half)};
  for (int64_t i = 0; i < half; ++i) {
    const double frequency = frequencies[i];
    for (int64_t t = 0; t < length; ++t) {
      turn.cos[t * half + i] = static_cast<float>(std::cos(t * frequency));
      turn.sin[t * half + i] = static_cast<float>(std::sin(t * frequency));
    }
  }
  return turn;
}

// sign +1: forward; -1: backward, the inverse of a rotation being its transpose.
Tensor turned(const Tensor& x_any, const std::vector<double>& frequencies,
              bool interleaved, float sign) {
  const Tensor x = x_any.contiguous();
  const int64_t half = static_cast<int64_t>(frequencies.size()), head_dim = 2 * half;
  const int64_t width = x.size(-1), length = x.size(-2);
  const int64_t rows = x.numel() / width, heads = width / head_dim;
  const Turn turn = turns(length, frequencies);
  Tensor y = at::empty_like(x);
  const float* xs = x.const_data_ptr<float>();
  float* ys = y.mutable_data_ptr<float>();
  at::parallel_for(0, rows, kRowsPerChunk, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* cosine = turn.cos.data() + row % length * half;
      const float* sine = turn.sin.data() + row % length * half;
      for (int64_t head = 0; head < heads; ++head) {
        const float* in = xs + row * width + head * head_dim;
        float* out = ys + row * width + head * head_dim;
        if (interleaved) {
          for (int64_t i = 0; i < half; ++i) {
            const float a = in[2 * i], b = in[2 * i + 1], s = sign * sine[i];
            out[2 * i] = a * cosine[i] - b * s;
            out[2 * i + 1] = b * cosine[i] + a * s;
          }
        } else {
          for (int64_t i = 0; i < half; ++i) {
            const float a = in[i], b = in[i + half], s = sign * sine[i];
            out[i] = a * cosine[i] - b * s;
            out[i + half] = b * cosine[i] + a * s;
          }
        }
      }
    }
  });
  return y;
}

class Rope : public torch::autograd::Function<Rope> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x,
                        const std::vector<double>& frequencies, bool interleaved) {
    ctx->saved_data["frequencies"] = frequencies;
    ctx->saved_data["interleaved"] = interleaved;
    return turned(x, frequencies, interleaved, 1.0f);
  }
  static tensor_list backward(AutogradContext* ctx, tensor_list gradients) {
    return {turned(gradients[0], ctx->saved_data["frequencies"].toDoubleVector(),
                   ctx->saved_data["interleaved"].toBool(), -1.0f),
            Tensor(), Tensor()};
  }
};

Tensor transformed(const Tensor& x_any, int64_t block) {
  const Tensor x = x_any.contiguous();
  Tensor y = at::empty_like(x);
  const float* from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel() / block, kRowsPerChunk, [&](int64_t begin, int64_t end) {
    hadamard(from + begin * block, (end - begin) * block, block, to + begin * block);
  });
  return y;
}

class Hadamard : public torch::autograd::Function<Hadamard> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t block) {
    ctx->saved_data["block"] = block;
    return transformed(x, block);
  }
  static tensor_list backward(AutogradContext* ctx, tensor_list gradients) {
    return {transformed(gradients[0], ctx->saved_data["block"].toInt()), Tensor()};
  }
};

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double epsilon) {
  return x.is_cpu() ? RmsNorm::apply(x, weight, epsilon)
                    : composed::rms_norm(x, weight, epsilon);
}

Tensor rope(const Tensor& x, const std::vector<double>& frequencies, bool interleaved) {
  return x.is_cpu() ? Rope::apply(x, frequencies, interleaved)
                    : composed::rope(x, frequencies, interleaved);
}

Tensor hadamard(const Tensor& x, int64_t block) {
  return x.is_cpu() ? Hadamard::apply(x, block) : composed::hadamard(x, block);
}

namespace composed {

Tensor rms_norm(const Tensor& x, const Tensor& weight, double epsilon) {
  return x * at::rsqrt(x.square().mean(-1, /*keepdim=*/true) + epsilon) * weight;
}

Tensor rope(const Tensor& x, const std::vector<double>& frequencies, bool interleaved) {
  const int64_t half = static_cast<int64_t>(frequencies.size()), length = x.size(-2);
  const Turn turn = turns(length, frequencies);
  // Against pairs [.., length, heads, half].
  const auto table = [&](const std::vector<float>& values) {
    return at::tensor(values).to(x.device()).view({length, 1, half});
  };
  const Tensor cosine = table(turn.cos), sine = table(turn.sin);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.pop_back();
  shape.push_back(x.size(-1) / (2 * half));
  shape.insert(shape.end(), interleaved ? std::initializer_list<int64_t>{half, 2}
                                        : std::initializer_list<int64_t>{2, half});
  const int64_t pair = interleaved ? -1 : -2;
  const Tensor pairs = x.reshape(shape);
  const Tensor a = pairs.select(pair, 0), b = pairs.select(pair, 1);
  return at::stack({a * cosine - b * sine, b * cosine + a * sine}, pair)
      .reshape(x.sizes());
}

Tensor hadamard(const Tensor& x, int64_t block) {
  Tensor y = x.reshape({-1, block});
  for (int64_t run = 1; run < block; run *= 2) {
    const Tensor pairs = y.view({-1, block / (2 * run), 2, run});
    const Tensor a = pairs.select(2, 0), b = pairs.select(2, 1);
    y = at::stack({a + b, a - b}, 2).view({-1, block});
  }
  return (y / std::sqrt(static_cast<double>(block))).reshape(x.sizes());
}

}  // namespace composed

}  // namespace nibble
