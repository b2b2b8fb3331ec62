#include "kernels/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>

namespace nibble {
namespace {

const utf8proc_uint8_t* bytes(std::string_view text, size_t at) {
  return reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at;
}

// How many bytes at `at` begin a well-formed sequence that then breaks off (at least 1):
// the "maximal subpart" that Unicode 3.9 replaces by one U+FFFD.
size_t broken_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0};
  };
  const uint8_t lead = byte(at);
  uint8_t low = 0x80, high = 0xbf;  // of the second byte
  size_t length = 1;
  if (lead >= 0xc2 && lead <= 0xdf) length = 2;
  if (lead >= 0xe0 && lead <= 0xef) length = 3;
  if (lead >= 0xf0 && lead <= 0xf4) length = 4;
  if (lead == 0xe0) low = 0xa0;   // shorter forms are overlong
  if (lead == 0xed) high = 0x9f;  // surrogates
  if (lead == 0xf0) low = 0x90;
  if (lead == 0xf4) high = 0x8f;  // beyond U+10FFFF
  size_t good = 1;
  while (good < length && at + good < text.size() && byte(at + good) >= low &&
         byte(at + good) <= high) {
    ++good;
    low = 0x80, high = 0xbf;
  }
  return good;
}

}  // namespace

Character character_at(std::string_view text, size_t at) {
  if (const auto lead = static_cast<uint8_t>(text[at]); lead < 0x80) return {lead, 1};
  utf8proc_int32_t code_point = -1;
  const auto length = utf8proc_iterate(
      bytes(text, at), static_cast<utf8proc_ssize_t>(text.size() - at), &code_point);
  if (length <= 0) return {};
  return {code_point, static_cast<int>(length)};
}

bool is_letter(int32_t code_point) {
  if (code_point < 0) return false;
  switch (utf8proc_category(code_point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return true;
    default:
      return false;
  }
}

bool is_number(int32_t code_point) {
  if (code_point < 0) return false;
  switch (utf8proc_category(code_point)) {
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return true;
    default:
      return false;
  }
}

bool is_space(int32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
         c == 0x205f || c == 0x3000;
}

bool is_mark(int32_t code_point) {
  if (code_point < 0x300) return false;
  switch (utf8proc_category(code_point)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
      return true;
    default:
      return false;
  }
}

bool is_nonspacing_mark(int32_t code_point) {
  return code_point >= 0x300 && utf8proc_category(code_point) == UTF8PROC_CATEGORY_MN;
}

bool is_word(int32_t c) {
  if (c < 0) return false;
  if (c < 0x80)
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           c == '_';
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    case UTF8PROC_CATEGORY_SO:  // the symbols that are Alphabetic: letters in circles
      return (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
             (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189);
    default:
      return is_letter(c) || is_mark(c) || c == 0x200c || c == 0x200d;
  }
}

bool is_punctuation(int32_t c) {
  if (c < 0) return false;
  if (c < 0x80)
    return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) ||
           (c >= 123 && c <= 126);
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
      return true;
    default:
      return false;
  }
}

bool is_other(int32_t c) {
  if (c < 0) return false;
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
      return true;
    default:
      return false;
  }
}

size_t count_characters(std::string_view text) {
  size_t count = 0;
  for (char byte : text) count += (static_cast<uint8_t>(byte) & 0xc0) != 0x80;
  return count;
}

void append_utf8(std::string& text, int32_t code_point) {
  utf8proc_uint8_t bytes[4];
  const auto length = utf8proc_encode_char(code_point, bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
}

std::string lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Character c = character_at(text, at);
    if (c.code_point < 0x80)  // also a byte that is not UTF-8
      out += text[at] >= 'A' && text[at] <= 'Z' ? static_cast<char>(text[at] + 32)
                                                : text[at];
    else if (c.code_point == 0x130)  // SpecialCasing.txt: the only one that gives two
      out += "i\u0307";
    else
      append_utf8(out, utf8proc_tolower(c.code_point));
    at += static_cast<size_t>(c.length);
  }
  return out;
}

size_t grapheme_end(std::string_view text, size_t at) {
  utf8proc_int32_t state = 0;
  Character c = character_at(text, at);
  while (true) {
    at += static_cast<size_t>(c.length);
    if (at >= text.size()) return at;
    const Character next = character_at(text, at);
    if (c.code_point < 0 || next.code_point < 0 ||
        utf8proc_grapheme_break_stateful(c.code_point, next.code_point, &state))
      return at;
    c = next;
  }
}

int64_t first_invalid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    if (static_cast<uint8_t>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const Character c = character_at(text, at);
    if (c.code_point < 0) return static_cast<int64_t>(at);
    at += static_cast<size_t>(c.length);
  }
  return -1;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Character c = character_at(text, at);
    if (c.code_point >= 0) {
      out.append(text, at, static_cast<size_t>(c.length));
      at += static_cast<size_t>(c.length);
    } else {
      out += "\xef\xbf\xbd";  // U+FFFD
      at += broken_length(text, at);
    }
  }
  return out;
}

Result<std::string> normalize(std::string_view text, NormalForm form) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return !(c & 0x80); }))
    return std::string(text);  // ASCII is in every normal form
  const int64_t invalid = first_invalid_utf8(text);
  if (invalid >= 0)
    return error(StatusCode::invalid_argument,
                 "[tokenizer] normalizer: UTF-8 text was required; byte ", invalid,
                 " is not part of UTF-8; correct the text");
  int options = UTF8PROC_STABLE;
  if (form == NormalForm::nfc || form == NormalForm::nfkc) options |= UTF8PROC_COMPOSE;
  if (form == NormalForm::nfd || form == NormalForm::nfkd) options |= UTF8PROC_DECOMPOSE;
  if (form == NormalForm::nfkc || form == NormalForm::nfkd) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* mapped = nullptr;
  const auto size =
      utf8proc_map(bytes(text, 0), static_cast<utf8proc_ssize_t>(text.size()), &mapped,
                   static_cast<utf8proc_option_t>(options));
  if (size < 0)
    return error(StatusCode::internal,
                 "[tokenizer] normalizer: utf8proc failed: ", utf8proc_errmsg(size));
  std::string out(reinterpret_cast<const char*>(mapped), static_cast<size_t>(size));
  std::free(mapped);
  return out;
}

}  // namespace nibble
