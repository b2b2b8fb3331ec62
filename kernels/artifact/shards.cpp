#include "kernels/artifact/shards.h"

#include "kernels/base/json.h"
#include "kernels/base/status.h"

namespace nibble {
namespace {

std::string five_digits(size_t number) {
  const std::string digits = std::to_string(number);
  return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
}

}  // namespace

std::vector<Shard> split_shards(const std::map<std::string, int64_t>& tensor_bytes,
                                int64_t shard_bytes) {
  std::vector<Shard> shards(1);
  int64_t filled = 0;
  for (const auto& [name, size] : tensor_bytes) {
    if (!shards.back().tensors.empty() && filled + size > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().tensors.push_back(name);
    filled += size;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].file = shards.size() == 1 ? "model.safetensors"
                                        : cat("model-", five_digits(i + 1), "-of-",
                                              five_digits(shards.size()), ".safetensors");
  }
  return shards;
}

std::string shard_index(const std::vector<Shard>& shards,
                        const std::map<std::string, int64_t>& tensor_bytes) {
  if (shards.size() == 1) return "";
  nlohmann::json weight_map = nlohmann::json::object();
  for (const Shard& shard : shards) {
    for (const std::string& name : shard.tensors) weight_map[name] = shard.file;
  }
  int64_t total = 0;
  for (const auto& [name, size] : tensor_bytes) total += size;
  nlohmann::json index;
  index["metadata"]["total_size"] = total;
  index["weight_map"] = std::move(weight_map);
  return index.dump(2) + "\n";
}

}  // namespace nibble
