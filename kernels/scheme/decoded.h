// What a format's reader found, by checkpoint tensor name: quantized weights as one code a byte
// with their levels, everything else as it is stored.
//
// A format that keeps levels multiplied out gives one level where the artifact had two:
// export/exporter.h's check_decoded compares meaning, not text.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/scheme/coded_matrix.h"
#include "kernels/scheme/kv_scheme.h"
#include "kernels/scheme/layer_scheme.h"

namespace nibble {

struct Decoded {
  std::string config_json;
  std::map<std::string, CodedMatrix> coded;
  std::map<std::string, Tensor> floats;  // and biases that the format stores as i32
  // Of layers, by the weight's name: what their inputs are quantized to.
  std::map<std::string, ActivationScheme> inputs;
  // Act-order, where the format can say it: column c of `coded` is column permutations[c] of the weight.
  std::map<std::string, std::vector<int32_t>> permutations;
  bool keeps_permutations = false;  // the format can say them: one that has none has that order
  // Weights whose scales the format stores as something else (a reciprocal, 127 times it):
  // read back, they may be a float or two away (2^-22 of the value is allowed).
  std::set<std::string> reciprocal_scales;
  // Static KV caches, by the attention's module ("model.layers.0.self_attn").
  std::map<std::string, KvScheme> caches;
  // Tensors, or fields of the config, that say nothing about the weights -> why they were
  // left out.
  std::map<std::string, std::string> ignored;
};

}  // namespace nibble
