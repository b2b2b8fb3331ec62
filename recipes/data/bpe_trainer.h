// Trains a byte-level BPE tokenizer on text and gives it as a tokenizer.json.
//
// The text is cut as GPT-2 cuts it (kernels/tokenizer/pre_tokenize.h). Ids: 0 <|bos|>,
// 1 <|eos|>, 2 .. 257 the bytes, then one merged pair after the other, always the most
// frequent (the lowest ids among equals): Sennrich et al. 2016, arXiv 1508.07909,
// algorithm 1. encode puts <|bos|> first. The same text gives the same bytes.
//
//   lines       any bytes; each is cut on its own
//   vocabulary  ids in all, at least 258
//
// invalid_argument: vocabulary below 258, or more than the text has pairs for (names how
// many).
#pragma once

#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

Result<std::string> train_bpe(const std::vector<std::string>& lines, int64_t vocabulary);

// The tokenizer_config.json that goes with it.
std::string bpe_tokenizer_config();

}  // namespace nibble
