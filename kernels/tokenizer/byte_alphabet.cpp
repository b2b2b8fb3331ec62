#include "kernels/tokenizer/byte_alphabet.h"

#include <cstdint>

#include "kernels/tokenizer/unicode.h"

namespace nibble {
namespace {

struct Alphabet {
  std::array<std::string, 256> characters;
  std::array<int, 0x144> bytes;  // code point -> byte, -1: none. 0x100 + 68 code points

  Alphabet() {
    bytes.fill(-1);
    int extra = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      const int code_point = printable ? byte : extra++;
      bytes[static_cast<size_t>(code_point)] = byte;
      std::string& out = characters[static_cast<size_t>(byte)];
      if (code_point < 0x80) {
        out = static_cast<char>(code_point);
      } else {  // two bytes reach U+07FF
        out += static_cast<char>(0xc0 | (code_point >> 6));
        out += static_cast<char>(0x80 | (code_point & 0x3f));
      }
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

const std::array<std::string, 256>& byte_alphabet() { return alphabet().characters; }

std::string spell_bytes(std::string_view bytes) {
  std::string out;
  for (char byte : bytes) out += byte_alphabet()[static_cast<uint8_t>(byte)];
  return out;
}

std::optional<std::string> unspell_bytes(std::string_view spelled) {
  std::string out;
  for (size_t at = 0; at < spelled.size();) {
    const Character c = character_at(spelled, at);
    if (c.code_point < 0 || c.code_point >= static_cast<int>(alphabet().bytes.size()))
      return {};
    const int byte = alphabet().bytes[static_cast<size_t>(c.code_point)];
    if (byte < 0) return {};
    out += static_cast<char>(byte);
    at += static_cast<size_t>(c.length);
  }
  return out;
}

}  // namespace nibble
