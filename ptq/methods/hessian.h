// What the calibration inputs of a layer say about it: H = sum over tokens of x x^T.
//
//   H [in, in]   sum_t x_t x_t^T                  the layer's output error of dW is dW H
//   dW^T D [in, in]   sum_t (f_t - x_t) x_t^T          f_t: what the float model gives
//   the layer
//
// Layers that read one value (q, k and v; gate and up) share one Hessian. D, when the
// caller gives the float inputs too, says where the best float weight for the inputs x
// lies that should give the float model's outputs: W + W D H^-1 (least squares).
//
// Each product is f32 over the rows of one call, added in double, the panels of H in
// parallel: the same bytes at any thread count. One caller at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace nibble {

class Hessian {
 public:
  explicit Hessian(int64_t columns);

  // inputs, float_inputs: f32 [tokens, columns]; float_inputs undefined: the same as
  // inputs.
  void accumulate(const at::Tensor& inputs, const at::Tensor& float_inputs = {});

  int64_t columns() const { return columns_; }
  int64_t tokens() const { return tokens_; }
  at::Tensor matrix() const;  // H, f64, symmetric
  bool has_drift() const { return drift_.defined(); }
  const at::Tensor& drift() const { return drift_; }  // D, f64; undefined when x = f

 private:
  int64_t columns_;
  int64_t tokens_ = 0;
  at::Tensor upper_;  // the panels right of the diagonal, f64
  at::Tensor drift_;
};

}  // namespace nibble
