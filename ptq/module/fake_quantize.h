// FakeQuantize: y = dequantize(quantize(x)) with the arithmetic that ships
// (kernels/scheme/coded_matrix.h), straight through in the backward pass.
//
//   straight-through   dx = dy where x / s is inside the code range, else 0
//                      (Bengio et al., arXiv 1308.3432, sec. 4)
//   LSQ                ds as in Esser et al., arXiv 1902.08153, eq. 3, scaled by
//                      1 / sqrt(n * q_highest) (sec. 2.2), n = values a scale governs
//
//   x  any shape, read as [rows, cols]: weights [shape[0], rest]; activations [tokens,
//   features]
//      or per tensor.  y  the same shape.
//
// Scales of a weight: recomputed from x by the rule at every forward (default), fixed by
// set_levels, or learned (learn_scale: level 0 becomes the parameter "scale").
// A static activation: `scale` is fixed, observed or learned; per tensor, zero point 0.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "kernels/scheme/coded_matrix.h"
#include "kernels/scheme/layer_scheme.h"

namespace nibble {

class FakeQuantizeImpl : public torch::nn::Module {
 public:
  // weight quantizer
  FakeQuantizeImpl(QuantScheme scheme, ScaleRule rule);
  // activation quantizer (static: scheme.scale; dynamic: per row from the data)
  explicit FakeQuantizeImpl(ActivationScheme scheme);

  torch::Tensor forward(const torch::Tensor& x);

  const QuantScheme& scheme() const { return scheme_; }
  void set_levels(const CodedMatrix& levels);  // codes ignored
  void set_scale(float scale);                 // per-tensor
  void learn_scale();                          // LSQ; a scale must be set
  bool learns_scale() const { return scale_.defined(); }
  void set_enabled(bool enabled) { enabled_ = enabled; }

  // The codes and levels that ship for this weight: equal to what forward simulated.
  CodedMatrix coded(const torch::Tensor& weight) const;
  ActivationScheme activation() const;  // with the scale of now

 private:
  QuantScheme scheme_;
  ScaleRule rule_;
  ActivationScheme activation_;
  bool is_activation_ = false;
  bool enabled_ = true;
  CodedMatrix levels_;   // set_levels
  torch::Tensor scale_;  // learned: [level 0 values]
};
TORCH_MODULE(FakeQuantize);

}  // namespace nibble
