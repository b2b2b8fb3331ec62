// Turns what flows between the layers of a decoder by orthogonal matrices, its function
// unchanged, so that no channel carries outliers and rounding loses less: QuaRot (Ashkboos
// et al., arXiv 2404.00456, sec. 4) and the fixed rotations of SpinQuant (Liu et al., arXiv
// 2405.16406, sec. 3.1).
//
//   residual  the residual stream x becomes x Q (orthogonal.h, signs by seed). Weights of
//             RMS norms go into the layers behind them first (an RMS norm without weights
//             commutes with Q). W of a layer that reads the stream becomes W Q, of one that
//             adds to it Q^T W, the embedding's rows likewise.
//   heads     each value head becomes v H, in v_proj and o_proj.
//   down      what down_proj reads is transformed as it runs: a node `hadamard` before it,
//             its inverse in W. Blocks of the largest power of two in the width.
//   cache     queries and keys, as they leave rope: a node `hadamard` on each, whose
//             product is the same and whose cached keys have no outlying channels.
//
// residual and heads cost nothing when the model runs. A tied lm_head gets a weight of its
// own (untie.h): the final norm's weight goes into it. In double, rounded once to f32,
// which is what changed tensors become.
//
// unsupported: what reads or makes the stream is none of embedding, rms_norm, linear, moe
// and add (a layer norm subtracts a mean, which Q does not keep), experts of a moe for
// `down`, adapters. invalid_argument: there is nothing to rotate. not_found: a tensor is
// missing. Nothing is changed then.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "kernels/base/tensor.h"
#include "kernels/program/program.h"

namespace nibble {

struct RotateOptions {
  bool residual = false, heads = false, down = false, cache = false;
  uint64_t seed = 1;
  bool any() const { return residual || heads || down || cache; }
};

struct RotatedModel {
  Program program;
  std::map<std::string, Tensor> tensors;
  bool untied = false;  // lm_head has a weight of its own now
};
Result<RotatedModel> rotate(const Program& program,
                            const std::map<std::string, Tensor>& tensors,
                            const RotateOptions& options);

// Its layers read what a `hadamard` node makes: only formats that write graphs hold it.
bool has_online_rotation(const Program& program);

}  // namespace nibble
