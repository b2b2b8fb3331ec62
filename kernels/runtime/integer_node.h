// The arithmetic of the integer path of convolutional nets, operand by operand: what the
// executor runs, what ptq/module's exact mode repeats with LibTorch, and what tests compare.
//
// Every value v of the program has a static per-tensor ActivationScheme: codes q, scale s_v.
// (zero point 0: signed codes before a ReLU, unsigned after it.) All products below are f32
// in the order written, no FMA; rint is round half to even; clamp is to the code range.
//
//   requantize     q_y = clamp(rint((float(q_x) * s_x) / s_y))     a layer's own input scheme
//                  (LayerScheme.input) from the value's codes
//   conv2d, linear acc = sum q_x * q_w + bias_q[c]      int32, exact
//                  bias_q[c] = rint(bias[c] / (s_x * s_w[c]))     int32 (double division, then rint)
//                  m[c] = s_x * s_w[c];   q_y = clamp(rint((float(acc) * m[c]) / s_y))
//                  a ReLU that alone consumes the output is the same formula with the ReLU
//                  value's unsigned scheme (the clamp at 0 is the ReLU); then the conv's own
//                  value has no scheme
//                  last layer (no scheme on its output): y = float(acc) * m[c]
//   add            q_y = clamp(rint((float(q_a) * s_a + float(q_b) * s_b) / s_y)); again a sole
//                  ReLU consumer is fused by its unsigned scheme
//   shortcut_pad   q_y = q_x or 0; the output's scheme equals the input's
//   global_average_pool  t = sum of q_x over h, w (int32);
//                  q_y = clamp(rint(((float(t) * s_x) / float(h * w)) / s_y))
//   flatten        q_y = q_x
//   max_pool       q_y = the largest q_x of the window; the output's scheme equals the input's
//   concat         q_y = clamp(rint((float(q_x) * s_x) / s_y)) of each input
//   softmax        last alone, of the floats that the last layer or average makes: what makes
//                  them stores y = float(acc) * m[c], or y = (float(t) * s_x) / float(h * w)
//
// Weights are int2..int8 symmetric (no zero point), per channel ("/r@f32") or per tensor
// ("/t@f32").
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/ops/requantize.h"
#include "kernels/scheme/layer_scheme.h"

namespace nibble {

inline int32_t clamp_code(float rounded, int lowest, int highest) {
  if (!(rounded > static_cast<float>(lowest))) return lowest;
  if (rounded > static_cast<float>(highest)) return highest;
  return static_cast<int32_t>(rounded);
}

// rint(bias / (s_x * s_w)), the product in f32 and the division in double; saturates.
int32_t integer_bias(float bias, float input_scale, float weight_scale);

}  // namespace nibble
