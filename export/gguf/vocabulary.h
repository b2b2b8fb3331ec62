// A model's tokenizer files as the vocabulary of a GGUF, and the way back.
//
// vocabulary_of: byte-level BPE (tokenizer.json, or vocab.json with merges.txt) becomes
// "gpt2" with the name of its pre-tokenizer; SentencePiece BPE (tokenizer.model,
// tokenizer.bin, tokenizer.json with byte fallback) becomes "llama" with scores. The
// vocabulary made is then a tokenizer of its own, and it must cut some texts and the text
// of every token as the files do.
// tokenizer_files: tokenizer.json of a "gpt2", tokenizer.model of a "llama", vocab.txt of
// a "bert"; with tokenizer_config.json and generation_config.json, which say what
// surrounds a text and what ends it.
//
// unsupported: a tokenizer that GGUF cannot say (names the part), or whose vocabulary
// would cut a text otherwise (quotes it).
#pragma once

#include <map>
#include <string>

#include "kernels/tokenizer/gguf_vocabulary.h"

namespace nibble {

// rows: of the model's embedding; ids beyond the tokenizer's become unused [PAD<id>].
// config_json: bos_token_id and eos_token_id where the tokenizer names none.
Result<GgufVocabulary> vocabulary_of(const std::map<std::string, Bytes>& files,
                                     const std::string& config_json, int64_t rows);

Result<std::map<std::string, Bytes>> tokenizer_files(const GgufVocabulary& vocabulary,
                                                     const std::string& chat_template);

// chat_template.jinja, or tokenizer_config.json's chat_template (of several the one named
// default); "" for none.
std::string chat_template_of(const std::map<std::string, Bytes>& files);

}  // namespace nibble
