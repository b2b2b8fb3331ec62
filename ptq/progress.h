// How long work reports where it is; recipes/cli draws it. No LibTorch here.
#pragma once

#include <functional>
#include <string>

namespace nibble {

// stage ("gptq"), what ("model.layers.3.mlp.down_proj"), done and total in the stage's units.
using Progress = std::function<void(const std::string& stage, const std::string& what, int64_t done,
                                    int64_t total)>;

// A block whose layers are all solved, or which a transform is through with. block: -1
// and `blocks` are what stands before and behind the blocks; blocks 0: layer by layer.
struct BlockDone {
  std::string step;  // "awq"; "" for solving
  int block = 0, blocks = 0;
  int64_t layers = 0;       // done in this block; of a transform: groups of layers
  bool kept = true;         // for a run after this one, should this one be killed
  double output_error = 0;  // their mean
  int64_t done = 0, total = 0;
};
using BlockProgress = std::function<void(const BlockDone&)>;

}  // namespace nibble
