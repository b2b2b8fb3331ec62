// Builds the part of a GGUF before its tensors: keys with typed values, then where each
// tensor lies.
//
//   header | keys in the order they were added | tensor infos | zeros to the alignment
//
// Allocates. One thread at a time.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

inline constexpr uint64_t kGgufAlignment = 32;
inline uint64_t gguf_padded(uint64_t bytes) {
  return (bytes + kGgufAlignment - 1) / kGgufAlignment * kGgufAlignment;
}

struct GgufInfo {
  std::string name;
  std::vector<int64_t> dims;  // innermost first
  uint32_t type = 0;
  uint64_t bytes = 0;
};

class GgufMetadataWriter {
 public:
  void text(std::string_view key, std::string_view value);
  void number(std::string_view key, uint32_t value);
  void real(std::string_view key, float value);
  void flag(std::string_view key, bool value);
  void texts(std::string_view key, std::span<const std::string> values);
  void reals(std::string_view key, std::span<const float> values);
  void integers(std::string_view key, std::span<const int32_t> values);

  // Everything up to the first tensor's byte.
  std::string finish(const std::vector<GgufInfo>& tensors) const;

 private:
  std::string keys_;
  uint64_t count_ = 0;
};

}  // namespace nibble
