// A tokenizer.json as data, and the Tokenizer that it makes.
//
//   encode: added tokens are cut out of the text; the rest is normalized, added tokens
//           that are looked for after that cut out, pre-tokenized, and each piece given
//           to the model; the post-processor's tokens go around.
//   decode: special tokens left out, the strings of the rest given to the decoder.
#pragma once

#include <memory>
#include <vector>

#include "kernels/tokenizer/added_tokens.h"
#include "kernels/tokenizer/decoders.h"
#include "kernels/tokenizer/models.h"
#include "kernels/tokenizer/normalizers.h"
#include "kernels/tokenizer/post_processor.h"
#include "kernels/tokenizer/pre_tokenizers.h"
#include "kernels/tokenizer/tokenizer.h"

namespace nibble {

struct Pipeline {
  std::vector<AddedToken> added;
  Normalizer normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  ModelParts model;
  PostProcessor post_processor;
  Decoder decoder;
  std::vector<int32_t> eos;
};

std::unique_ptr<Tokenizer> make_tokenizer(Pipeline pipeline);

}  // namespace nibble
