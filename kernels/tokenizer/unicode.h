// What tokenizers need of Unicode: decoding UTF-8, character classes, normal forms.
//
// Classes follow the general categories of utf8proc's Unicode version; space is the
// White_Space property (what \s means in the tokenizers' regular expressions).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/status.h"

namespace nibble {

struct Character {
  int32_t code_point = -1;  // -1: not UTF-8, one byte long
  int length = 1;           // bytes
};
// The character at text[at]; at < text.size().
Character character_at(std::string_view text, size_t at);

bool is_letter(int32_t code_point);       // \p{L}
bool is_number(int32_t code_point);       // \p{N}
bool is_space(int32_t code_point);        // \s
bool is_word(int32_t code_point);         // \w: alphabetic, mark, Nd, Pc, join control
bool is_punctuation(int32_t code_point);  // \p{P} and ASCII's $+<=>^`|~
bool is_mark(int32_t code_point);         // \p{M}
bool is_nonspacing_mark(int32_t code_point);  // \p{Mn}
bool is_other(int32_t code_point);  // control, format, private use: \p{C}, but assigned

size_t count_characters(std::string_view text);
void append_utf8(std::string& text, int32_t code_point);
// Each character by itself: U+0130 gives two, a final sigma is not told apart.
std::string lowercase(std::string_view text);
// Where the user-perceived character (grapheme cluster) at `at` ends.
size_t grapheme_end(std::string_view text, size_t at);

// The position of the first byte that is not part of UTF-8, or -1.
int64_t first_invalid_utf8(std::string_view text);
// Each maximal ill-formed sequence becomes U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

enum class NormalForm : uint8_t { nfc, nfd, nfkc, nfkd };
// invalid_argument: not UTF-8 (the message names the byte).
Result<std::string> normalize(std::string_view text, NormalForm form);

}  // namespace nibble
