// A SentencePiece model as data (its .model file, or the `llama` vocabulary of a GGUF)
// and the Tokenizer that it makes.
//
//   encode: the normalizer rewrites the text (character map, spaces as U+2581, one put
//           first); then BPE merges the adjacent pair whose union is the piece of the
//           greatest score (leftmost among equals), or Unigram takes the segmentation of
//           the greatest sum. What has no piece becomes its bytes or one unknown token.
//   decode: U+2581 is a space, byte pieces are bytes, control pieces are left out.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/tokenizer/charsmap.h"
#include "kernels/tokenizer/tokenizer.h"

namespace nibble {

// The numbers are those of the file.
enum class PieceType : uint8_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,  // found in the text as it is, never merged
  unused = 5,        // may be merged through, is cut again in the end
  byte = 6
};

struct SentencePiece {
  std::string text;
  float score = 0;
  PieceType type = PieceType::normal;
};

struct SentencePieceModel {
  std::vector<SentencePiece> pieces;  // by id; the first of equal texts is found
  bool is_bpe = true;                 // else Unigram
  bool byte_fallback = false;
  int32_t unknown = 0, bos = 1, eos = 2;           // -1: none
  std::string unknown_surface = " \xe2\x81\x87 ";  // what decode writes: U+2047
  std::optional<Charsmap> charsmap;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool whitespace_as_suffix = false;
};

// A .model file. data_loss: not that, or damaged (names the byte or piece). unsupported:
// a model of words or characters, a denormalizer.
Result<SentencePieceModel> read_sentence_piece(std::string_view file);

struct SpecialTokens {
  bool add_bos = false, add_eos = false;  // by encode
  std::vector<int32_t> eos;               // ids that end a sequence
};
std::unique_ptr<Tokenizer> make_tokenizer(SentencePieceModel model,
                                          SpecialTokens special);

}  // namespace nibble
