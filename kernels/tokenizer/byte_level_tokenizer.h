// Byte-level BPE as data and as the Tokenizer it makes; tokenizer_json.cpp reads the
// data.
//
// encode: added tokens are cut out, the rest is normalized, pre-tokenized, and each
// piece's bytes are merged by rank; then the template's tokens go before and after.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/tokenizer/added_tokens.h"
#include "kernels/tokenizer/bpe_merge.h"
#include "kernels/tokenizer/pre_tokenize.h"
#include "kernels/tokenizer/tokenizer.h"
#include "kernels/tokenizer/unicode.h"

namespace nibble {

struct PreTokenizeStage {
  bool prefix_space = false;  // put a space before a piece that has none; else: split
  SplitPattern pattern = SplitPattern::gpt2;
};

struct ByteLevelBpe {
  std::vector<std::string> pieces;  // id -> bytes; "" where no token has the id
  std::unordered_map<std::string, int32_t>
      vocabulary;                              // bytes -> id, the model's own tokens
  std::unordered_map<uint64_t, Merge> merges;  // left id << 32 | right id
  bool ignore_merges = false;                  // a piece that is a token is emitted whole
  int32_t unknown = -1;  // for a byte that has no token; -1: an error
  std::vector<AddedToken> added;
  std::vector<NormalForm> normalizers;
  std::vector<PreTokenizeStage> stages;
  std::vector<int32_t> prefix, suffix;  // special tokens that encode puts around
  std::vector<int32_t> eos;
};

std::unique_ptr<Tokenizer> make_tokenizer(ByteLevelBpe bpe);

}  // namespace nibble
