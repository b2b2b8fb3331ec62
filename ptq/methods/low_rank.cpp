#include "ptq/methods/low_rank.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"
#include "ptq/methods/gptq_factor.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

at::Tensor f64_of(MatrixView<const float> x) {
  at::Tensor result = at::empty({x.rows, x.cols}, at::kDouble);
  for (int64_t r = 0; r < x.rows; ++r)
    std::copy_n(x.row(r), x.cols, result.data_ptr<double>() + r * x.cols);
  return result;
}

// T - Q.
at::Tensor missing(const LayerProblem& problem, const CodedMatrix& coded) {
  at::Tensor target;
  if (problem.inputs != nullptr && problem.gptq.match_float &&
      problem.inputs->has_drift()) {
    at::Tensor original;
    target_weights(problem, *gptq_factor(problem), original);
    target = original.to(at::kDouble);
  } else {
    target = f64_of(problem.weight);
  }
  const std::vector<float> values = dequantized(coded);
  return target.sub_(f64_of({values.data(), coded.rows, coded.cols}));
}

// The eigenvectors of a symmetric matrix by rising eigenvalue, which `values` gets.
at::Tensor eigenvectors(const at::Tensor& symmetric, at::Tensor* values) {
  const auto [found, vectors] = at::linalg_eigh((symmetric + symmetric.t()) * 0.5);
  *values = found;
  return vectors;
}

// The first `rank` left singular vectors of E R^(1/2), [out, rank], from the smaller
// side.
at::Tensor left_vectors(const at::Tensor& e, const Hessian* inputs, int64_t rank) {
  const int64_t out = e.size(0), in = e.size(1);
  at::Tensor values;
  if (out <= in) {
    const at::Tensor weighted = inputs != nullptr ? at::mm(e, inputs->matrix()) : e;
    return eigenvectors(at::mm(weighted, e.t()), &values).narrow(1, out - rank, rank);
  }
  at::Tensor root = e;  // E R^(1/2), the root being any matrix whose square R is
  if (inputs != nullptr) {
    const at::Tensor axes = eigenvectors(inputs->matrix(), &values);
    root = at::mm(e, axes * values.clamp_min(0).sqrt());
  }
  const at::Tensor right =
      eigenvectors(at::mm(root.t(), root), &values).narrow(1, in - rank, rank);
  const at::Tensor scaled = at::mm(root, right);
  // What has no length is no direction: nothing is left to give back there.
  const at::Tensor length = scaled.norm(2, 0);
  const double longest = length.max().item<double>();
  const at::Tensor inverse = at::where(length > longest * 1e-7, 1 / length, 0.0);
  return scaled * inverse;
}

Tensor bf16_tensor(const at::Tensor& values) {
  const at::Tensor x = values.contiguous();
  const double* from = x.data_ptr<double>();
  std::byte* bytes = nullptr;
  Tensor result{DType::bf16, values.sizes().vec(),
                Bytes::allocate(static_cast<size_t>(x.numel()) * 2, &bytes)};
  auto* to = reinterpret_cast<uint16_t*>(bytes);
  for (int64_t i = 0; i < x.numel(); ++i)
    to[i] = bf16_from_float(static_cast<float>(from[i]));
  return result;
}

}  // namespace

LowRankFactors low_rank_factors(const LayerProblem& problem, const CodedMatrix& coded,
                                int64_t rank) {
  const OneThread one_thread;
  const at::Tensor e = missing(problem, coded);
  const bool finite = at::isfinite(e).all().item<bool>() &&
                      (problem.inputs == nullptr ||
                       at::isfinite(problem.inputs->matrix()).all().item<bool>());
  if (!finite) {
    throw Error(error(StatusCode::out_of_range, "[low rank] ", problem.node,
                      ": the weight and its inputs must be finite; found NaN or "
                      "infinity; check the weights before this layer and the "
                      "calibration data"));
  }
  const at::Tensor b = left_vectors(e, problem.inputs, rank);
  return {.a = bf16_tensor(at::mm(b.t(), e)), .b = bf16_tensor(b)};
}

void add_factors(const LowRankFactors& factors, MatrixView<float> weight, int64_t first) {
  const int64_t rank = factors.a.rows();
  const std::vector<float> a = value_or_throw(to_float(factors.a)),
                           b = value_or_throw(to_float(factors.b));
  parallel_for(weight.rows, [&](int64_t r) {
    float* row = weight.row(r);
    for (int64_t k = 0; k < rank; ++k) {
      const float factor = b[static_cast<size_t>((first + r) * rank + k)];
      const float* from = a.data() + k * weight.cols;
      for (int64_t c = 0; c < weight.cols; ++c) row[c] += factor * from[c];
    }
  });
}

}  // namespace nibble
