// Takes the normalization of images into the layer that reads them, so that the model's
// input becomes the bytes themselves, divided by 255:
//
//   x[c]  = (p[c] / 255 - mean[c]) / std[c]                    what the layer reads now
//   W'[o, c, ..] = W[o, c, ..] / std[c]                        on p / 255
//   b'[o] = b[o] - sum over c, kh, kw of W'[o, c, ..] mean[c]
//
// in double, rounded once to f32. A code a byte value then loses nothing of an image. A
// layer without a bias gets "<node>.bias".
//
// failed_precondition, naming the node: the input is read by anything but one convolution
// of one group, or that one pads (its zeros stand for the mean's pixel, which p has not).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/program/program.h"

namespace nibble {

// mean and std: a number a channel, or none (0 and 1). Program and tensors stay as they
// are on an error.
Status fold_normalization(Program& program, std::map<std::string, Tensor>& tensors,
                          const std::vector<float>& mean, const std::vector<float>& std);

}  // namespace nibble
