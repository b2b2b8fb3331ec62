// A SentencePiece model of a few pieces, written in the wire format of its message.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

namespace nibble {

inline std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}
inline std::string number_field(uint32_t number, uint64_t value) {
  return varint(number << 3) + varint(value);
}
inline std::string bytes_field(uint32_t number, const std::string& bytes) {
  return varint(number << 3 | 2) + varint(bytes.size()) + bytes;
}
inline std::string piece(const std::string& text, float score, int type = 1) {
  std::string bits(4, '\0');
  std::memcpy(bits.data(), &score, 4);
  std::string out = bytes_field(1, text) + varint(2 << 3 | 5) + bits;
  if (type != 1) out += number_field(3, static_cast<uint64_t>(type));
  return bytes_field(1, out);
}
inline std::string small_pieces() {
  return piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3) +
         piece("\u2581", -1) + piece("a", -2) + piece("b", -3) + piece("ab", -4) +
         piece("\u2581a", -5) + piece("\u2581ab", -6) + piece("<mask>", 0, 4) +
         piece("abb", -7, 5) + piece("<0x63>", 0, 6);
}
inline std::string small_model(int type, bool byte_fallback = false) {
  return small_pieces() +
         bytes_field(2, number_field(3, static_cast<uint64_t>(type)) +
                            number_field(35, byte_fallback)) +
         bytes_field(3, bytes_field(1, "identity"));
}

}  // namespace nibble
