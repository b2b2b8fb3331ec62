// The alphabet in which byte-level BPE vocabularies spell bytes as printable characters.
//
// Bytes 33-126, 161-172 and 174-255 are the code point of the same value; the other 68
// bytes, in increasing order, are U+0100, U+0101, ... (space is U+0120, newline U+010A).
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

const std::array<std::string, 256>& byte_alphabet();  // byte -> its character as UTF-8
std::string spell_bytes(std::string_view bytes);
// The bytes that a vocabulary string stands for; nothing when a character is not in the
// alphabet.
std::optional<std::string> unspell_bytes(std::string_view spelled);

}  // namespace nibble
