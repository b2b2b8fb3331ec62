// The kinds of tokenizer that make_tokenizer chooses from, one .cpp each.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "kernels/tokenizer/tokenizer.h"

namespace nibble {

// tokenizer.bin of llama2.c: pieces with scores, byte fallback, BOS and a space put
// first. data_loss: a record reaches beyond the file, or fewer than 259 pieces (names the
// piece).
Result<std::unique_ptr<Tokenizer>> make_llama2c_tokenizer(const Bytes& file);

// tokenizer.json with byte-level BPE. files as in make_tokenizer: the other files say
// which ids end a sequence. data_loss: not JSON, or a field is missing or of the wrong
// type. unsupported: a component or option nibble does not know (the message names it).
Result<std::unique_ptr<Tokenizer>> make_byte_level_tokenizer(
    const std::map<std::string, Bytes>& files);

}  // namespace nibble
