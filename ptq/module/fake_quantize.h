// FakeQuantize: y = dequantize(quantize(x)) with the arithmetic that ships
// (kernels/scheme/coded_matrix.h), straight through in the backward pass.
//
//   u = x / s (+ the zero point)   v = the number that u's code stands for   y = s * v
//   straight-through   dx = dy where u is inside the code range, else 0
//                      (Bengio et al., arXiv 1308.3432, sec. 4)
//   LSQ                ds = g * sum of dy * (v - u inside the range, v outside it),
//                      g = 1 / sqrt(n * Qp)
//                      (Esser et al., arXiv 1902.08153, eq. 3 and sec. 2.2)
//   PACT               da = sum of dy * v / Qp outside the range, a = s * Qp the learned
//   clip
//                      (Choi et al., arXiv 1805.06085, eq. 3)
//   DoReFa             u is that of t(x) = c tanh(x) / max|tanh|, the maximum a constant
//   to
//                      the gradient (Zhou et al., arXiv 1606.06160, eq. 9)
//   LSQ+               dz = -g * s * sum of dy outside the range, dm = g * sum of the
//   same
//                      (Bhalgat et al., arXiv 2004.09576, eq. 8, b = -s z)
//
//   x   any shape, read as [rows, cols]: weights [shape[0], rest]; activations [tokens,
//       features], or all of it where one scale serves the tensor.  y  the same shape
//   Qp  the largest number that a code stands for
//   n   values a scale governs; for an activation, those of one sample (x[0])
//
// Scales of a weight: recomputed from x by the rule at every forward (default), fixed by
// set_levels, or learned (learn_scale: level 0 becomes the parameter "scale", f32;
// forward and coded() round it to the level's element, the rounding being
// straight-through). Zero points are fixed or learned (learn_zero_point: the parameter
// "zero", [level 0 values], is z times a fixed unit, the mean scale at the start, so that
// it moves at the pace of the scales; rounded to the codes of its element), or minima
// (learn_minimum: "minimum" in the same way). A static activation: `scale` is fixed or
// learned, per tensor, or its clip is ("alpha").
//
// Throws nibble::Error: invalid_argument (a float scheme, levels of another scheme or
// shape), out_of_range (a scale is not finite and positive), failed_precondition (no
// scale yet), unsupported (learn_scale where level 0 is a table type or shifted,
// learn_zero_point where there is no single level of zero points, learn_minimum where
// there are no minima of integers or floats). Results do not depend
// on the thread count. One thread at a time while it trains.
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
  void learn_clip();  // PACT, instead of learn_scale: a static activation's
  bool learns_scale() const { return scale_.defined(); }
  void learn_zero_point();  // LSQ+; after learn_scale
  void learn_minimum();     // the same where the scheme has minima
  bool learns_zero_point() const { return zero_.defined(); }
  // DoReFa, a weight: what is quantized from now on is c tanh(x) / max|tanh(x)|, c the
  // largest |weight|. Returns the x whose t(x) is this weight, cut off at +-c: where
  // training begins.
  torch::Tensor squash(const torch::Tensor& weight);
  bool squashes() const { return squash_ > 0; }
  // The weight that is quantized: t(x), or x itself.
  torch::Tensor seen(const torch::Tensor& x) const;
  // A learned scale stays above 1/256 of where it began (all values clipped, a gradient
  // still brings it back) and what its element can say; the trainer calls this every
  // step.
  void keep_positive();
  void set_enabled(bool enabled) { enabled_ = enabled; }
  // A static activation whose codes begin at 0: y is that of max(x, 0).
  bool cuts_below_zero() const;

  // The codes and levels that ship for this weight: equal to what forward simulated.
  CodedMatrix coded(const torch::Tensor& weight) const;
  CodedMatrix levels(const torch::Tensor& weight) const;  // the same without the codes
  ActivationScheme activation() const;                    // with the scale of now

 private:
  // The levels of now for this x: fixed, learned or chosen; codes empty.
  CodedMatrix levels_of(const float* x, int64_t rows, int64_t cols) const;

  QuantScheme scheme_;
  ScaleRule rule_;
  ActivationScheme activation_;
  bool is_activation_ = false;
  bool enabled_ = true;
  CodedMatrix levels_;   // set_levels, set_scale; rows 0: none
  torch::Tensor floor_;  // learned: [level 0 values], the least that each may be
  torch::Tensor scale_;  // learned: [level 0 values] * scale_unit_
  torch::Tensor zero_;   // learned: [level 0 zero points or minima] * zero_unit_
  float zero_unit_ = 1;
  float scale_unit_ = 1;  // Qp where the clip is learned
  bool learns_clip_ = false;
  double squash_ = 0;  // c of DoReFa; 0: none
};
TORCH_MODULE(FakeQuantize);

}  // namespace nibble
