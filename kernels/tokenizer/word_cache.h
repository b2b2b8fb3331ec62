// Remembers the ids of words met before in one text: most words of a text come again.
#pragma once

#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

// The words must outlive the cache. Not for sharing between threads.
class WordCache {
 public:
  // Appends the ids of word: a copy, or else what tokenize(word) appends to ids.
  template <class Tokenize>
  Status append(std::string_view word, std::vector<int32_t>& ids,
                const Tokenize& tokenize) {
    constexpr size_t kLongest = 64;  // longer ones hardly come again
    if (word.size() > kLongest) return tokenize(word);
    const auto [found, is_new] = known_.try_emplace(word, ids.size(), ids.size());
    if (is_new) {
      NIBBLE_RETURN_IF_ERROR(tokenize(word));
      found->second.second = ids.size();
    } else {
      const auto [first, last] = found->second;
      for (size_t i = first; i < last; ++i) ids.push_back(ids[i]);
    }
    return ok_status();
  }

 private:
  std::unordered_map<std::string_view, std::pair<size_t, size_t>> known_;
};

}  // namespace nibble
