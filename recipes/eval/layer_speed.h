// How fast each kind of linear layer of a model runs here: layers of one kernel row, scheme
// and shape are one kind.
//
// A timing runs every layer of a kind once, one after the other, as the model does, and
// counts their weights' bytes (codes, scales and offsets; a group's remainder as stored).
// Kinds take turns, so that a slow minute of the machine hits all.
//
// unsupported: a model without linear layers outside mixtures. Weights are repacked beside
// the executor's: memory for one more copy.
#pragma once

#include <string>
#include <vector>

#include "recipes/eval/speed.h"

namespace nibble {

struct LayerSpeed {
  std::string kernel, scheme;
  int64_t rows = 0, cols = 0, layers = 0;
  Rate decode;   // weight bytes read a second, one token
  Rate prefill;  // multiply-adds, twice, a second, `tokens` tokens
};

// In the order in which the program meets the kinds.
Result<std::vector<LayerSpeed>> measure_layers(const Executor& model, int64_t repeats,
                                               int64_t tokens);

// A header, then a row a kind.
std::vector<std::vector<std::string>> layer_speed_rows(
    const std::vector<LayerSpeed>& speeds);
std::string layer_kind_text(const LayerSpeed& kind);  // "int4/g128@f16 [1024, 384]"

}  // namespace nibble
