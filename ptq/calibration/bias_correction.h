// Takes the mean error of each channel out of the biases of a net with static activations:
//
//   b[c] += mean over images and positions of (y[c] - y~[c])
//
// y is a layer's output in the float net, y~ in the net as it is quantized, and corrected,
// up to it: weights of their codes, values, layers' inputs and biases rounded to theirs (Nagel et
// al., arXiv 1906.04721, sec. 4.2, from data; in the order of the program). Rounding a
// weight moves a channel's mean by as much as its inputs' means, which after a ReLU are
// far from 0.
//
//   images  f32 [n, c, h, w], preprocessed; the first plan.bias_correction of them
//
// calibrated.model becomes a copy with f32 biases; their accounts say what was done.
// A layer without a bias gets none. Throws nibble::Error: failed_precondition (a quantized
// layer has no codes yet). Deterministic: one thread.
#pragma once

#include <torch/types.h>

#include "ptq/calibrate.h"

namespace nibble {

// Does the plan ask for one of them, and what it asks for.
bool has_corrections(const Plan& plan);
void apply_corrections(Calibrated& calibrated, const CalibrationData& data);

void correct_biases(Calibrated& calibrated, const torch::Tensor& images);

// The same with the variances: what re-estimating the batch norms does (Sun et al.,
// "Hybrid 8-bit Floating Point Training and Inference for Deep Neural Networks", NeurIPS
// 2019; Nagel et al., arXiv 2106.08295), where they are folded into the convolutions
// before them:
//
//   s[c] *= sigma(y[c]) / sigma(y~[c]);   b[c] += mean(y[c]) - mean(y~[c]), under the new
//   s
//
// s[c] is the scale of row c of a convolution's weight (check_plan sees to it that there
// is one), codes stay. Of the first plan.batch_norm_reestimation images; linear layers
// get their means alone.
void reestimate_batch_norms(Calibrated& calibrated, const torch::Tensor& images);

}  // namespace nibble
