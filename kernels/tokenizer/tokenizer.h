// Text to token ids and back.
//
// Kinds: tokenizer.json (models BPE, WordPiece, Unigram and WordLevel with their
// normalizers, pre-tokenizers, post-processors and decoders: models.h and its neighbours
// say which), SentencePiece tokenizer.model (BPE and Unigram), llama2.c tokenizer.bin,
// GPT-2's vocab.json with merges.txt, BERT's vocab.txt, and the vocabulary of a GGUF
// (gguf_vocabulary.h). An unknown component of tokenizer.json is
// `unsupported`, naming it; its truncation and padding sections concern batches and are
// not applied. Safe to call from any thread.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/base/tensor.h"

namespace nibble {

struct TypedIds {
  std::vector<int32_t> ids;
  std::vector<int32_t> types;  // of each id: 0 in the first text, 1 in the second ...
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // With the special tokens that the tokenizer adds by itself (BOS ...). invalid UTF-8 is
  // encoded byte by byte where the kind can, else invalid_argument.
  virtual Result<std::vector<int32_t>> encode(std::string_view text) const = 0;
  virtual Result<std::vector<int32_t>> encode_without_special(
      std::string_view text) const = 0;
  // Two texts as one sequence, with the special tokens and token types of a
  // tokenizer.json (BERT: [CLS] first [SEP] second [SEP]). unsupported: another kind of
  // tokenizer.
  virtual Result<TypedIds> encode_pair(std::string_view first,
                                       std::string_view second) const;
  virtual std::string decode(
      std::span<const int32_t> ids) const = 0;  // skips special tokens
  virtual int64_t vocabulary() const = 0;       // ids are < vocabulary()
  virtual int32_t bos() const = 0;  // the id that encode puts first, -1 when it adds none
  virtual std::vector<int32_t> eos() const = 0;  // ids that end a sequence
};

// files: name -> contents, as Artifact::tokenizer (tokenizer.json, tokenizer_config.json,
// generation_config.json, tokenizer.model ...). vocabulary: the model's rows; a tokenizer
// that has more ids is refused (out_of_range, "wrong tokenizer"). not_found: no known
// file among them.
Result<std::unique_ptr<Tokenizer>> make_tokenizer(
    const std::map<std::string, Bytes>& files, int64_t vocabulary);

}  // namespace nibble
