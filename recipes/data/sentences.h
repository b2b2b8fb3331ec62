// The sentences of a text as token sequences, for encoders.
//
// A text is cut at its lines and, unless per_line, within them after each run of . ! ?
// (with closing quotes and brackets) that white space follows. White space around a
// sentence is dropped; sentences of fewer than min_chars characters are left out; the
// first `limit` that remain are taken. A sentence of more than `length` tokens keeps its
// first length - 1 and its last, the tokenizer's [SEP]. A safetensors file is read as
// recipes/data/text.h says.
//
// Errors are those of load_text.
#pragma once

#include "recipes/data/text.h"

namespace nibble {

std::vector<std::string> split_sentences(const std::string& line);

// The texts of a file.
Result<std::vector<std::string>> read_sentences(const std::filesystem::path& path,
                                                const TextOptions& options);

// tokenizer may be null for a safetensors file.
Result<TextData> load_sentences(const std::filesystem::path& path,
                                const Tokenizer* tokenizer, int64_t vocabulary,
                                const TextOptions& options);

}  // namespace nibble
