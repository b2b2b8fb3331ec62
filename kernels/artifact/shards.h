// How a directory spreads its weights over safetensors files, as transformers does:
// model.safetensors, or model-00001-of-00003.safetensors ... with
// model.safetensors.index.json, which says where each tensor lies.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace nibble {

struct Shard {
  std::string file;
  std::vector<std::string> tensors;
};
// Fills shards in the order of names, each to at most shard_bytes (one tensor may pass
// it). No tensors: one empty shard.
std::vector<Shard> split_shards(const std::map<std::string, int64_t>& tensor_bytes,
                                int64_t shard_bytes);

inline constexpr const char* kShardIndex = "model.safetensors.index.json";
// The index's text; "" for a single shard, which needs none.
std::string shard_index(const std::vector<Shard>& shards,
                        const std::map<std::string, int64_t>& tensor_bytes);

}  // namespace nibble
