#include "kernels/tokenizer/added_tokens.h"

#include <algorithm>

#include "kernels/tokenizer/unicode.h"

namespace nibble {
namespace {

// The start of the character that ends at `end` (> 0).
size_t character_before(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && end - at < 4 && (static_cast<uint8_t>(text[at]) & 0xc0) == 0x80) --at;
  return at;
}

}  // namespace

void AddedTokenMatcher::add(const AddedToken& token) {
  if (token.content.empty()) return;
  auto& list = by_first_byte_[static_cast<uint8_t>(token.content[0])];
  const auto place = std::find_if(list.begin(), list.end(), [&](const AddedToken& other) {
    return other.content.size() < token.content.size();
  });
  list.insert(place, token);
}

void AddedTokenMatcher::split(std::string_view text,
                              std::vector<Segment>& segments) const {
  size_t done = 0;  // text before this is in segments
  for (size_t at = 0; at < text.size();) {
    const AddedToken* found = nullptr;
    for (const AddedToken& token : by_first_byte_[static_cast<uint8_t>(text[at])])
      if (text.substr(at, token.content.size()) == token.content) {
        found = &token;
        break;
      }
    if (!found) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + found->content.size();
    at = end;
    if (found->single_word) {
      const bool word_before =
          begin > 0 &&
          is_word(character_at(text, character_before(text, begin)).code_point);
      const bool word_after =
          end < text.size() && is_word(character_at(text, end).code_point);
      if (word_before || word_after) continue;
    }
    if (found->lstrip)
      while (begin > done) {
        const size_t before = character_before(text, begin);
        if (before < done || !is_space(character_at(text, before).code_point)) break;
        begin = before;
      }
    if (found->rstrip)
      while (end < text.size()) {
        const Character c = character_at(text, end);
        if (!is_space(c.code_point)) break;
        end += static_cast<size_t>(c.length);
      }
    if (begin > done) segments.push_back({text.substr(done, begin - done), -1});
    segments.push_back({text.substr(begin, end - begin), found->id});
    done = at = end;
  }
  if (done < text.size()) segments.push_back({text.substr(done), -1});
}

}  // namespace nibble
