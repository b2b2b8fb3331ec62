// What the calibration inputs of a layer say about it: H = sum over tokens of x x^T.
//
//   H [in, in]   sum_t x_t x_t^T            the layer's output error of dW is dW H dW^T
//   D [in, in]   sum_t (f_t - x_t) x_t^T    f_t: what the float model gives the layer
//
// Layers that read one value (q, k and v; gate and up) share one Hessian. D, when the
// caller gives the float inputs too, says where the best float weight for the inputs x
// lies that should give the float model's outputs: W + W D H^-1 (least squares).
//
// Each product is f32 over the rows of one call, added in double, the panels of H in
// parallel: the same bytes at any thread count. Sums over parts of the tokens may be made
// apart and added. One caller at a time. Holds one double matrix, with D two.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

namespace nibble {

class Hessian {
 public:
  // device: of the inputs; what reads the sums wants them on the CPU (to_cpu).
  explicit Hessian(int64_t columns, at::Device device = at::kCPU);

  // inputs, float_inputs: f32 [tokens, columns]; float_inputs undefined: the same as
  // inputs.
  void accumulate(const at::Tensor& inputs, const at::Tensor& float_inputs = {});
  // The sums over other tokens of the same inputs.
  void add(const Hessian& other);
  void to_cpu();

  int64_t columns() const { return columns_; }
  int64_t tokens() const { return tokens_; }
  at::Tensor matrix() const;  // H, f64, symmetric; shared with this: only read it. Any thread
  bool has_drift() const { return drift_.defined(); }
  const at::Tensor& drift() const { return drift_; }  // D, f64; undefined when x = f

  // The sums as they are, for sending them elsewhere (ptq/distributed): the panels of H
  // right of the diagonal, and D, defined by `drift`.
  at::Tensor sums() const { return upper_; }
  at::Tensor drift_sums(bool drift);
  void set_tokens(int64_t tokens) { tokens_ = tokens; }
  void forget_drift() {
    drift_.reset();
  }  // of inputs that are only measured from here on

  // What a method derives from H alone (gptq's factor): made once for all layers that read
  // these inputs and ask under one key; the last key's is kept. Safe from several threads.
  template <class T>
  std::shared_ptr<const T> derived(const std::string& key,
                                   const std::function<std::shared_ptr<const T>()>& make)
      const {
    const std::lock_guard<std::recursive_mutex> lock(*mutex_);
    if (derived_ == nullptr || derived_key_ != key) {
      derived_ = nullptr;
      derived_ = make();
      derived_key_ = key;
    }
    return std::static_pointer_cast<const T>(derived_);
  }
  void forget_derived() const {
    const std::lock_guard<std::recursive_mutex> lock(*mutex_);
    derived_ = nullptr;
  }

 private:
  int64_t columns_;
  int64_t tokens_ = 0;
  mutable bool whole_ = false;  // what is left of the panels mirrors what is right of them
  at::Tensor upper_;            // f64
  at::Tensor drift_;
  std::shared_ptr<std::recursive_mutex> mutex_ = std::make_shared<std::recursive_mutex>();
  mutable std::shared_ptr<const void> derived_;
  mutable std::string derived_key_;
};

}  // namespace nibble
