// The kinds of tokenizer that make_tokenizer chooses from, one .cpp each.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/tokenizer/tokenizer.h"

namespace nibble {

// tokenizer.bin of llama2.c: pieces with scores, byte fallback, BOS and a space put
// first. data_loss: a record reaches beyond the file, or fewer than 259 pieces (names the
// piece).
Result<std::unique_ptr<Tokenizer>> make_llama2c_tokenizer(
    const std::map<std::string, Bytes>& files);

// tokenizer.json, any of the models of models.h. files as in make_tokenizer: the other
// files say which ids end a sequence. data_loss: not JSON, or a field is missing or of
// the wrong type. unsupported: a component or option nibble does not know (the message
// names it).
Result<std::unique_ptr<Tokenizer>> make_json_tokenizer(
    const std::map<std::string, Bytes>& files);

// vocab.json and merges.txt of GPT-2: byte-level BPE without a BOS.
// data_loss: not JSON, an id that cannot be, a merge that is none (names it).
Result<std::unique_ptr<Tokenizer>> make_gpt2_tokenizer(
    const std::map<std::string, Bytes>& files);

// vocab.txt of BERT: WordPiece in lower case unless tokenizer_config.json says otherwise.
// data_loss: no [UNK].
Result<std::unique_ptr<Tokenizer>> make_bert_tokenizer(
    const std::map<std::string, Bytes>& files);

// tokenizer.model of SentencePiece. BOS goes first where the model has one, unless
// tokenizer_config.json has add_bos_token false. Errors: sentence_piece.h.
Result<std::unique_ptr<Tokenizer>> make_sentence_piece_tokenizer(
    const std::map<std::string, Bytes>& files);

// The ids that end a sequence, from generation_config.json, else config.json (an id or a
// list), else the token that tokenizer_config.json names; id_of gives -1 for no token.
Result<std::vector<int32_t>> read_eos(
    const std::map<std::string, Bytes>& files,
    const std::function<int32_t(std::string_view)>& id_of);

}  // namespace nibble
