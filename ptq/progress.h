// How long work reports where it is; recipes/cli draws it. No LibTorch here.
#pragma once

#include <functional>
#include <string>

namespace nibble {

// stage ("gptq"), what ("model.layers.3.mlp.down_proj"), done and total in the stage's units.
using Progress = std::function<void(const std::string& stage, const std::string& what, int64_t done,
                                    int64_t total)>;

}  // namespace nibble
