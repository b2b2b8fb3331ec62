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
