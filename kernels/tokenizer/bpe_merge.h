// The merge loop of byte-pair encoding.
//
// Repeatedly replaces the adjacent pair of lowest rank (leftmost among equals) by its
// merged symbol until no pair can merge. A linked list and a heap keyed (rank, position):
// n log n.
//
//   symbols  in: ids of the smallest units; out: ids of the merged ones
//   lookup   (left id, right id) -> Merge; Merge::kNone where the pair does not merge
#pragma once

#include <cstdint>
#include <queue>
#include <vector>

namespace nibble {

struct Merge {
  static constexpr int32_t kNone = INT32_MAX;
  int32_t rank = kNone;
  int32_t merged = -1;
};

template <class Lookup>
void merge_symbols(std::vector<int32_t>& symbols, const Lookup& lookup) {
  struct Link {
    int32_t id, previous, next;
  };
  struct Candidate {
    Merge merge;
    int32_t position, left,
        right;  // ids at the time: a stale candidate no longer finds them
    bool operator<(const Candidate& other) const {  // the queue's top is the greatest
      if (merge.rank != other.merge.rank) return merge.rank > other.merge.rank;
      return position > other.position;
    }
  };
  const int32_t count = static_cast<int32_t>(symbols.size());
  std::vector<Link> links(symbols.size());
  std::priority_queue<Candidate> queue;
  const auto consider = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const int32_t a = links[static_cast<size_t>(left)].id,
                  b = links[static_cast<size_t>(right)].id;
    const Merge merge = lookup(a, b);
    if (merge.rank != Merge::kNone) queue.push({merge, left, a, b});
  };
  for (int32_t i = 0; i < count; ++i)
    links[static_cast<size_t>(i)] = {symbols[static_cast<size_t>(i)], i - 1,
                                     i + 1 < count ? i + 1 : -1};
  for (int32_t i = 0; i + 1 < count; ++i) consider(i, i + 1);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Link& left = links[static_cast<size_t>(top.position)];
    if (left.id != top.left || left.next < 0) continue;
    Link& right = links[static_cast<size_t>(left.next)];
    if (right.id != top.right) continue;
    left.id = top.merge.merged;
    right.id = -1;  // gone: no candidate has this id
    left.next = right.next;
    if (left.next >= 0) links[static_cast<size_t>(left.next)].previous = top.position;
    consider(left.previous, top.position);
    consider(top.position, left.next);
  }
  symbols.clear();
  for (int32_t i = count > 0 ? 0 : -1; i >= 0; i = links[static_cast<size_t>(i)].next)
    symbols.push_back(links[static_cast<size_t>(i)].id);
}

}  // namespace nibble
