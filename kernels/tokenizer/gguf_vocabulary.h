// The vocabulary in the metadata of a GGUF (tokenizer.ggml.*), and the Tokenizer it
// makes.
//
//   model "llama"  SentencePiece BPE by scores, byte fallback
//         "gpt2"   byte-level BPE; `pre` names the regular expression
//         "bert"   WordPiece; words begin with U+2581 instead of continuing with ##
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/tokenizer/tokenizer.h"

namespace nibble {

struct GgufVocabulary {
  std::string model, pre;
  std::vector<std::string> tokens;  // by id
  std::vector<float> scores;        // of each token, or none
  std::vector<int32_t> types;       // of each token, or none; numbers as PieceType
  std::vector<std::string> merges;  // "left right"
  int32_t bos = -1, eos = -1, unknown = -1;
  int32_t eot = -1;  // ends a turn: another end of a sequence
  bool add_bos = false, add_eos = false, add_space_prefix = true;
};

// What a `pre` of byte-level BPE stands for: the sections of a tokenizer.json that say the
// same, as JSON. unsupported: nibble does not know the name.
struct GgufPreTokenizer {
  std::string normalizer, pre_tokenizer;
  bool ignore_merges = false;
};
Result<GgufPreTokenizer> gguf_pre_tokenizer(std::string_view pre);

// data_loss: lists of different lengths, an id or type that cannot be. unsupported:
// another model or `pre` (the message names it).
Result<std::unique_ptr<Tokenizer>> make_gguf_tokenizer(const GgufVocabulary& gguf);

}  // namespace nibble
