// llama2.c checkpoints: version 0 (no magic) and version 1 (fp32), as a Llama of Hugging
// Face names with interleaved rope.
//
// unsupported: version 2 (int8). data_loss: the file's length is not what its header
// needs.
#pragma once

#include <map>
#include <string>

#include "kernels/base/tensor.h"

namespace nibble {

struct Llama2c {
  std::map<std::string, Tensor> tensors;  // views of the file
  std::string config_json;
};

// Does the header look like llama2.c's? (By content: sizes that fit each other.)
bool is_llama2c(const Bytes& file);
Result<Llama2c> read_llama2c(const Bytes& file, const std::string& path);

}  // namespace nibble
