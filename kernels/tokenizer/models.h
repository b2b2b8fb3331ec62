// The model of a tokenizer: one piece of pre-tokenized text to token ids.
//
//   WordPiece  the longest token at each place; a word that has a gap is unknown
//   WordLevel  the whole piece is a token, or unknown
//   BPE        characters (or their bytes), then merges by rank
//   Unigram    the segmentation of the greatest sum of scores
//
// All are read from tokenizer.json; Unigram also serves SentencePiece files. tokenize is
// invalid_argument where a text has characters that the vocabulary cannot express and
// no unknown token stands for them. Safe to call from any thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/tokenizer/json_view.h"

namespace nibble {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const {
    return std::hash<std::string_view>()(text);
  }
};

struct Vocabulary {
  std::vector<std::string> pieces;  // id -> string; "" where no token has the id
  std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>> ids;

  int32_t find(std::string_view piece) const {  // -1: none
    const auto found = ids.find(piece);
    return found == ids.end() ? -1 : found->second;
  }
  void put(std::string piece, int32_t id);  // the later of two equal strings wins
};

// The ids of <0x00> ... <0xFF>, -1 where the vocabulary lacks one.
std::vector<int32_t> byte_tokens(const Vocabulary& vocabulary);

class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // Appends the ids of a piece, which is not empty.
  virtual Status tokenize(std::string_view piece, std::vector<int32_t>& ids) const = 0;
};

struct ModelParts {
  std::shared_ptr<const Vocabulary> vocabulary;
  std::unique_ptr<TokenModel> model;
};

// model: the section `model` of tokenizer.json.
Result<ModelParts> read_model(JsonView model);

// The vocabulary {string: id} of `where`. data_loss: an id is missing, negative or so
// large that it cannot be one (names the string).
Result<Vocabulary> read_vocabulary(JsonView vocabulary, const char* where);

struct BpeOptions {
  std::string prefix, suffix;  // of continuing and of last characters
  std::string unknown;         // "": an unknown character is an error
  bool byte_fallback = false, fuse_unknown = false;
  bool ignore_merges = false;  // a piece that is a token is emitted whole
};
// merges in order of rank. data_loss: one is not of two tokens into a third (names it and
// `file`).
Result<ModelParts> make_bpe(
    Vocabulary vocabulary,
    const std::vector<std::pair<std::string_view, std::string_view>>& merges,
    BpeOptions options, const char* file);

ModelParts make_word_piece(Vocabulary vocabulary, std::string unknown,
                           std::string_view prefix, size_t longest_word);

// The rows of read_model's table that live in files of their own.
Result<ModelParts> read_bpe(JsonView model);
Result<ModelParts> read_unigram(JsonView model);

}  // namespace nibble
