// Codes as dense little-endian bit strings of 32-bit words, as writers of GPTQ and
// compressed-tensors lay them down.
//
//   code i of b bits lies at bits i * b .. i * b + b - 1; bit p is bit p % 32 of word p /
//   32
//
// Readers take them apart with code of their own (checkpoint.h).
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

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
