// SentencePiece's precompiled character map: which strings a normalizer replaces.
//
// The blob: u32 size of the trie in bytes, the trie (Darts double array, u32 units,
// values are offsets), then the replacements, NUL-terminated UTF-8. All little-endian.
// Reads are checked, so a damaged trie only gives wrong text. Safe to call from any
// thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

class Charsmap {
 public:
  // data_loss: not base64, sizes that disagree (names `where`).
  static Result<Charsmap> from_base64(std::string_view text, const char* where);
  static Result<Charsmap> from_blob(std::string_view blob, const char* where);

  // As the tokenizers library: a whole grapheme of less than 6 bytes is replaced when
  // anything at its begin is in the map (the shortest), else each of its characters.
  std::string map_graphemes(std::string_view text) const;

  struct Match {
    size_t length = 0;  // 0: none
    std::string_view replacement;
  };
  // As SentencePiece: the longest string of the map that text begins with.
  Match longest(std::string_view text) const;

 private:
  bool shortest(std::string_view text, std::string_view& replacement) const;
  template <class Found>
  void prefixes(std::string_view text, const Found& found) const;
  std::string_view replacement_at(size_t offset) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace nibble
