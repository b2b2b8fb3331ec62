// One layer whose input is in static integer codes: on the integer path, and alone in a
// net of floats, where it reads floats and gives floats.
//
//   q_x  = clamp(rint(x / s_x))                     of a net of floats
//   acc  = sum q_x * q_w                            int32, exact
//   y[c] = float(acc + bias_q[c]) * m[c]            (runtime/integer_node.h)
//
// A linear layer is the convolution of one pixel. Of an lstm's first matrix the bias is
// added afterwards, as a float: bias_q is 0.
//
// unsupported: an input scheme that is not static integers with one scale and zero point
// 0, a weight without symmetric integer codes and a scale a row or a tensor.
// failed_precondition: the weight is float. out_of_range: a bias beyond int32.
// invalid_argument: shapes disagree. Names the node.
//
// create allocates; run uses per-thread scratch. Safe to call from any thread.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/ops/conv2d/conv2d.h"

namespace nibble {

// Static integer codes with one scale > 0 and zero point 0; else unsupported, naming
// `where`.
Status check_static_input(const std::string& where, const ActivationScheme& scheme);

struct IntegerLayer {
  Conv2dShape shape;
  ActivationScheme input;
  PreparedConv2dS8 conv;
  std::vector<float> multiplier;  // m[c]
  std::vector<int32_t> bias;      // bias_q[c]

  // shape: channels, height, width of the input, stride, padding and groups; the rest is
  // the weight's. bias: a tensor's name, "": none. kernels (may be null) receives the row
  // by the weight's name.
  static Result<IntegerLayer> create(const Artifact& artifact, const std::string& node,
                                     const std::string& weight, const std::string& bias,
                                     Conv2dShape shape, const ActivationScheme& input,
                                     std::map<std::string, std::string>* kernels);
  int64_t input_size() const { return shape.channels * shape.height * shape.width; }
  int64_t pixels() const { return shape.out_height() * shape.out_width(); }

  // One image (or row): codes, or floats of input_size(), -> [outputs, pixels()].
  void run_codes(const uint8_t* codes, float* y) const;
  void run(const float* x, float* y) const;
};

// The static integer input scheme of a layer of a net of floats; null where it has none.
const ActivationScheme* static_input(const Artifact& artifact, const std::string& weight);

}  // namespace nibble
