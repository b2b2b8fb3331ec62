// Decodes ids one at a time, for text that is shown while it is made.
//
//   push(id_0) + push(id_1) + ... + finish()  ==  decode(all ids)
//
// Held back until it is settled: a character whose bytes have not all come. Only the ids
// since the last settled text are decoded again, with those before them for context (a
// space that is dropped at the start stays in the middle). Where byte tokens spell no
// UTF-8, text that was given out stays, and the rest becomes U+FFFD.
#pragma once

#include <string>
#include <vector>

#include "kernels/tokenizer/tokenizer.h"

namespace nibble {

class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  std::string push(int32_t id);  // what is new and settled, often nothing
  std::string finish();          // what was held back; then starts again

 private:
  std::string give(bool all);

  const Tokenizer* tokenizer_;
  std::vector<int32_t> window_;  // ids of the last settled text, then those since
  size_t settled_ = 0;           // how many of them gave the settled text
  std::string shown_;            // what decode(window_) was when text was given out
};

}  // namespace nibble
