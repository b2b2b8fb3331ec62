#include "kernels/tokenizer/trie.h"

#include <utility>

namespace nibble {

Trie::Trie() : values_(1, kNone) { grow(); }

void Trie::add(std::string_view key, int32_t value, bool replace) {
  int32_t node = 0;
  for (char byte : key) {
    int32_t next = step(node, byte);
    if (next == kNone) {
      next = static_cast<int32_t>(values_.size());
      values_.push_back(kNone);
      if (values_.size() * 2 > edges_.size()) grow();  // at most half full
      insert(static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(byte), next);
    }
    node = next;
  }
  int32_t& held = values_[static_cast<size_t>(node)];
  if (held == kNone || replace) held = value;
}

void Trie::insert(uint64_t key, int32_t node) {
  size_t at = place(key);
  while (edges_[at].node != kNone) at = (at + 1) & mask_;
  edges_[at] = {key, node};
}

void Trie::grow() {
  std::vector<Edge> old = std::exchange(edges_, {});
  const size_t size = old.empty() ? 64 : old.size() * 4;
  edges_.resize(size);
  mask_ = size - 1;
  shift_ = 64;
  for (size_t s = size; s > 1; s /= 2) --shift_;
  for (const Edge& edge : old)
    if (edge.node != kNone) insert(edge.key, edge.node);
}

}  // namespace nibble
