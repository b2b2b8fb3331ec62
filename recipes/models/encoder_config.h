// What lies beside an encoder's config.json and decides its graph, put into config.json
// under nibble's own names, so that the graph follows from config.json alone.
//
//   sentence_transformers {pooling, normalize, max_seq_length}
//       from modules.json, the Pooling module's config.json and sentence_bert_config.json
//   tensor_prefix
//       "bert." where the tensors of the checkpoint begin so
//
// unsupported: a module or a way of pooling that nibble does not have (named).
// data_loss, not_found: a file that is damaged or missing (named).
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "kernels/base/status.h"
#include "kernels/base/tensor.h"

namespace nibble {

// "bert." or "".
std::string bert_tensor_prefix(const std::map<std::string, Tensor>& tensors);

// config.json with tensor_prefix, for an encoder; unchanged for any other model.
Result<std::string> with_tensor_prefix(const std::string& config_json,
                                       const std::map<std::string, Tensor>& tensors);

bool is_sentence_transformer(const std::filesystem::path& directory);  // has modules.json
Result<std::string> with_sentence_transformers(const std::string& config_json,
                                               const std::filesystem::path& directory);

}  // namespace nibble
