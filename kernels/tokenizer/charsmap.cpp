#include "kernels/tokenizer/charsmap.h"

#include <cstdint>
#include <cstring>

#include "kernels/tokenizer/unicode.h"

namespace nibble {
namespace {

// The fields of a unit of a Darts double array.
bool has_leaf(uint32_t unit) { return unit >> 8 & 1; }
uint32_t label(uint32_t unit) { return unit & (0x80000000u | 0xff); }
uint32_t offset(uint32_t unit) { return (unit >> 10) << ((unit & 0x200) >> 6); }
uint32_t leaf_value(uint32_t unit) { return unit & 0x7fffffffu; }

int base64_digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  return c == '/' ? 63 : -1;
}

}  // namespace

Result<Charsmap> Charsmap::from_base64(std::string_view text, const char* where) {
  std::string blob;
  uint32_t bits = 0;
  int count = 0;
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  for (char c : text) {
    const int digit = base64_digit(c);
    if (digit < 0)
      return error(StatusCode::data_loss, "[tokenizer] ", where,
                   ": precompiled_charsmap in base64 was required; found the byte ",
                   static_cast<int>(static_cast<uint8_t>(c)), "; the file is damaged");
    bits = bits << 6 | static_cast<uint32_t>(digit);
    if ((count += 6) >= 8) blob += static_cast<char>(bits >> (count -= 8));
  }
  return from_blob(blob, where);
}

Result<Charsmap> Charsmap::from_blob(std::string_view blob, const char* where) {
  uint32_t size = 0;
  if (blob.size() >= sizeof size) std::memcpy(&size, blob.data(), sizeof size);
  if (blob.size() < sizeof size || size > blob.size() - sizeof size || size % 4 || !size)
    return error(StatusCode::data_loss, "[tokenizer] ", where,
                 ": a precompiled_charsmap of a trie and its replacements was required; "
                 "found ",
                 blob.size(), " bytes for a trie of ", size, "; the file is damaged");
  Charsmap map;
  map.units_.resize(size / 4);
  std::memcpy(map.units_.data(), blob.data() + sizeof size, size);
  map.replacements_ = blob.substr(sizeof size + size);
  return map;
}

template <class Found>
void Charsmap::prefixes(std::string_view text, const Found& found) const {
  size_t node = offset(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    node ^= byte;
    if (byte == 0 || node >= units_.size() || label(units_[node]) != byte) return;
    const bool leaf = has_leaf(units_[node]);
    node ^= offset(units_[node]);
    if (node >= units_.size()) return;
    if (leaf && !found(i + 1, leaf_value(units_[node]))) return;
  }
}

std::string_view Charsmap::replacement_at(size_t offset) const {
  if (offset >= replacements_.size()) return {};
  const std::string_view rest = std::string_view(replacements_).substr(offset);
  return rest.substr(0, rest.find('\0'));
}

bool Charsmap::shortest(std::string_view text, std::string_view& replacement) const {
  bool any = false;
  prefixes(text, [&](size_t, uint32_t value) {
    replacement = replacement_at(value);
    any = true;
    return false;
  });
  return any;
}

Charsmap::Match Charsmap::longest(std::string_view text) const {
  Match match;
  prefixes(text, [&](size_t length, uint32_t value) {
    match = {length, replacement_at(value)};
    return true;
  });
  return match;
}

std::string Charsmap::map_graphemes(std::string_view text) const {
  constexpr size_t kWhole = 6;  // bytes: a longer grapheme goes character by character
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t end = grapheme_end(text, at);
    std::string_view replacement;
    if (end - at < kWhole && shortest(text.substr(at, end - at), replacement)) {
      out += replacement;
      at = end;
      continue;
    }
    while (at < end) {
      const std::string_view character =
          text.substr(at, static_cast<size_t>(character_at(text, at).length));
      out += shortest(character, replacement) ? replacement : character;
      at += character.size();
    }
  }
  return out;
}

}  // namespace nibble
