// The metadata of a GGUF file: keys and typed values before the tensors.
//
//   "GGUF", u32 version, u64 tensors, u64 keys, then each key: string, u32 type, value
//   (a string is u64 length and bytes; an array u32 type, u64 count, values),
//   little-endian
//
// Numbers of every width are kept as int64, uint64 or double. The values are views of the
// file. Safe to call from any thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/tokenizer/gguf_vocabulary.h"

namespace nibble {

using GgufValue =
    std::variant<bool, int64_t, uint64_t, double, std::string_view, std::vector<bool>,
                 std::vector<int64_t>, std::vector<uint64_t>, std::vector<double>,
                 std::vector<std::string_view>>;

struct GgufMetadata {
  uint32_t version = 0;
  uint64_t tensors = 0;
  std::map<std::string, GgufValue, std::less<>> values;
  size_t end = 0;  // the byte after the last value: where the tensor infos begin
};

// data_loss: no GGUF of version 2 or 3, a value that reaches beyond the file, a type that
// does not exist, a key that comes twice (names the key and byte).
Result<GgufMetadata> read_gguf_metadata(std::string_view file);

// The tokenizer.ggml.* keys. not_found: no model or tokens among them.
Result<GgufVocabulary> gguf_vocabulary(const GgufMetadata& metadata);

}  // namespace nibble
