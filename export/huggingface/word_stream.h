// Codes as dense little-endian bit strings of 32-bit words, as writers of GPTQ and
// compressed-tensors lay them down.
//
//   code i of b bits lies at bits i * b .. i * b + b - 1; bit p is bit p % 32 of word p /
//   32
//
// Readers take them apart with code of their own (checkpoint.h).
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

namespace nibble {

// The low 4 bits of 8 bytes, the first in bits 0 to 3; nothing crosses from byte to byte.
inline uint32_t four_bits_each(uint64_t bytes) {
  uint64_t x = bytes & 0x0f0f0f0f0f0f0f0f;
  x = (x | x >> 4) & 0x00ff00ff00ff00ff;
  x = (x | x >> 8) & 0x0000ffff0000ffff;
  return static_cast<uint32_t>(x | x >> 16);
}

inline uint64_t eight_bytes(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  if constexpr (std::endian::native == std::endian::big) word = __builtin_bswap64(word);
  return word;
}

// 8 codes with `lift` (0 to 15) added to each.
inline uint32_t eight_of_4_bits(const uint8_t* codes, uint8_t lift) {
  const uint64_t low = eight_bytes(codes) & 0x0f0f0f0f0f0f0f0f;
  return four_bits_each(low + lift * uint64_t{0x0101010101010101});
}

class WordStream {
 public:
  // words: where the stream begins, zeroed; stride: words from one of the stream to the
  // next.
  WordStream(uint32_t* words, int64_t stride, int bits)
      : words_(words), stride_(stride), bits_(bits) {}

  // n codes, a byte each, with `lift` added to each as a byte.
  void put(const uint8_t* codes, int64_t n, uint8_t lift) {
    int64_t i = 0;
    // Codes that fill words: no code crosses from one to the next.
    if (32 % bits_ == 0 && position_ % 32 == 0) {
      const int each = 32 / bits_;
      const uint8_t mask = static_cast<uint8_t>((1u << bits_) - 1);
      uint32_t* word = words_ + position_ / 32 * stride_;
      for (; bits_ == 4 && i + each <= n; i += each, word += stride_, position_ += 32)
        *word = eight_of_4_bits(codes + i, lift);
      for (; i + each <= n; i += each, word += stride_, position_ += 32) {
        uint32_t value = 0;
        for (int j = 0; j < each; ++j) {
          const auto code = static_cast<uint8_t>((codes[i + j] + lift) & mask);
          value |= static_cast<uint32_t>(code) << (j * bits_);
        }
        *word = value;
      }
    }
    for (; i < n; ++i) put(static_cast<uint8_t>(codes[i] + lift));
  }

  void put(uint32_t code) {
    const int64_t word = position_ / 32;
    const int shift = static_cast<int>(position_ % 32);
    words_[word * stride_] |= code << shift;
    if (shift + bits_ > 32) words_[(word + 1) * stride_] |= code >> (32 - shift);
    position_ += bits_;
  }

 private:
  uint32_t* words_;
  int64_t stride_;
  int bits_;
  int64_t position_ = 0;
};

// Words that n codes take.
inline int64_t stream_words(int64_t n, int bits) { return (n * bits + 31) / 32; }

}  // namespace nibble
