// Cuts text into the pieces that BPE never merges across, as the known regular
// expressions do.
//
// The scanners are hand-written; each is one of these patterns (L letters, N numbers, s
// space):
//
//   gpt2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   llama3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
//            ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//   qwen2   llama3 with \p{N} in place of \p{N}{1,3}
//   digits  each number character alone;  digit_runs  runs of them together
//
// Every byte of the text is in exactly one piece, in order. A byte that is not UTF-8
// counts as a symbol. The pieces are views of text. Safe to call from any thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace nibble {

enum class SplitPattern : uint8_t { gpt2, llama3, qwen2, digits, digit_runs };

void split_text(std::string_view text, SplitPattern pattern,
                std::vector<std::string_view>& pieces);

// The regular expression of gpt2, llama3 or qwen2, as tokenizer.json spells it; ""
// otherwise.
std::string_view split_regex(SplitPattern pattern);

}  // namespace nibble
