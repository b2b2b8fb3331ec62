// The decoder of a tokenizer.json: steps from the strings of tokens to text.
//
// Known: ByteLevel WordPiece Metaspace ByteFallback Fuse Strip Replace BPEDecoder
// Sequence. Without a decoder tokens are joined by spaces. Safe to call from any thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/tokenizer/json_view.h"

namespace nibble {

using DecoderStep = std::function<void(std::vector<std::string>& tokens)>;

struct Decoder {
  std::vector<DecoderStep> steps;
  bool joined_by_spaces = false;

  std::string decode(std::vector<std::string> tokens) const;
};

// component: the section `decoder`, nothing for none. unsupported: an unknown type.
Result<Decoder> read_decoder(JsonView component);

// What follows from a run of byte tokens: their text if that is UTF-8, else one U+FFFD a
// byte.
std::string text_of_byte_tokens(const std::string& bytes);
// The byte that "<0x41>" names, or -1.
int byte_of_token(std::string_view token);

}  // namespace nibble
