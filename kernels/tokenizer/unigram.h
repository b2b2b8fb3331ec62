// The Unigram segmentation: the pieces whose scores have the greatest sum.
//
//   best(end) = max over pieces p ending at `end` of best(end - |p|) + score(p)
//
// Kudo 2018, "Subword Regularization", section 3.1 (Viterbi). A character that is no
// piece by itself may also be unknown, at the least score minus 10, as SentencePiece has
// it. Sums are kept in Real: tokenizer.json means double, SentencePiece float. They tie
// differently.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/tokenizer/trie.h"
#include "kernels/tokenizer/unicode.h"

namespace nibble {

constexpr double kUnknownPenalty = 10;

struct UnigramPart {
  size_t begin = 0, end = 0;
  int32_t id = -1;  // -1: one unknown character
};

// score(id, length in bytes) -> Real. parts: in order; they cover the text.
template <class Real, class Score>
void best_segmentation(std::string_view text, const Trie& trie, Real unknown_score,
                       const Score& score, std::vector<UnigramPart>& parts) {
  struct Node {
    Real best = 0;
    int32_t id = -1;
    int64_t begin = -1;  // -1: not reached
  };
  std::vector<Node> nodes(text.size() + 1);
  const auto offer = [&](size_t begin, size_t end, int32_t id, Real sum) {
    Node& node = nodes[end];
    if (node.begin < 0 || sum > node.best)
      node = {sum, id, static_cast<int64_t>(begin)};
  };
  for (size_t at = 0; at < text.size();) {
    const size_t character = static_cast<size_t>(character_at(text, at).length);
    const Real here = nodes[at].best;
    bool single = false;
    trie.prefixes(text, at, [&](size_t length, int32_t id) {
      offer(at, at + length, id, score(id, length) + here);
      single |= length == character;
    });
    if (!single) offer(at, at + character, -1, unknown_score + here);
    at += character;
  }
  const size_t first = parts.size();
  for (size_t end = text.size(); end > 0;) {
    const size_t begin = static_cast<size_t>(nodes[end].begin);
    parts.push_back({begin, end, nodes[end].id});
    end = begin;
  }
  for (size_t i = first, j = parts.size(); i + 1 < j; ++i)
    std::swap(parts[i], parts[--j]);
}

}  // namespace nibble
