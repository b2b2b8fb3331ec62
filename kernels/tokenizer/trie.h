// A byte trie: finds every key that begins at a place of a text, shortest first.
//
// Nodes are numbers; the edges lie in one open-addressing table keyed node * 256 + byte,
// so that a step is one probe. Building allocates; looking up does not. Safe to read from
// any thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace nibble {

class Trie {
 public:
  static constexpr int32_t kNone = -1;

  Trie();
  // Gives key the value (>= 0); a key that has one keeps it unless `replace`.
  void add(std::string_view key, int32_t value, bool replace = false);

  // The node after `byte`, or kNone. The root is 0.
  int32_t step(int32_t node, char byte) const {
    const uint64_t key = static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(byte);
    for (size_t at = place(key);; at = (at + 1) & mask_) {
      if (edges_[at].key == key) return edges_[at].node;
      if (edges_[at].node == kNone) return kNone;
    }
  }
  int32_t value(int32_t node) const { return values_[static_cast<size_t>(node)]; }

  // Calls found(length, value) for each key that begins at text[at].
  template <class Found>
  void prefixes(std::string_view text, size_t at, const Found& found) const {
    int32_t node = 0;
    for (size_t i = at; i < text.size(); ++i) {
      node = step(node, text[i]);
      if (node == kNone) return;
      if (value(node) != kNone) found(i + 1 - at, value(node));
    }
  }
  struct Match {
    size_t length = 0;
    int32_t value = kNone;
  };
  Match longest(std::string_view text, size_t at) const {
    Match best;
    prefixes(text, at, [&](size_t length, int32_t value) { best = {length, value}; });
    return best;
  }

 private:
  struct Edge {
    uint64_t key = ~uint64_t{0};
    int32_t node = kNone;
  };
  size_t place(uint64_t key) const {  // Fibonacci hashing: 2^64 / golden ratio
    return static_cast<size_t>((key * 0x9e3779b97f4a7c15u) >> shift_) & mask_;
  }
  void insert(uint64_t key, int32_t node);
  void grow();

  std::vector<Edge> edges_;
  std::vector<int32_t> values_;  // by node
  size_t mask_ = 0;
  int shift_ = 0;
};

}  // namespace nibble
