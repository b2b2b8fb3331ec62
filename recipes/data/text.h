// Text as token sequences: windows of a text, lines of a file, or ids from safetensors.
//
// A safetensors file holds int32 `input_ids` [sequences, length] (padding -1, at the end
// only); each row is a sequence, cut at `length` tokens. UTF-8 text is cut into windows
// of `length` tokens, each beginning with BOS if the tokenizer adds one; the last,
// shorter one is kept when it has >= 2 tokens.
//
// stride: a window begins so many tokens of text after the one before (rows of ids are cut
// into such windows as well), so that tokens have at least length - stride tokens of
// context. What two windows share is predicted once, by the first that holds it:
// counted_from says from which token on each window counts.
//
// per_line: each line, without the white
// space around it, of at least min_chars characters alone, cut at `length` tokens; a line
// of fewer than 2 tokens is left out.
//
// not_found: the file. invalid_argument: options or file that cannot give one sequence.
// data_loss: not UTF-8 (names the byte), padding before an id, another type or shape of
// input_ids. out_of_range: an id outside the vocabulary (names row and column).
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "kernels/tokenizer/tokenizer.h"

namespace nibble {

struct TextOptions {
  int64_t length = 512;  // tokens a sequence, BOS counted
  bool per_line = false;
  int64_t min_chars = 0;  // Unicode characters
  int64_t limit = 0;      // sequences; 0: all
  bool append_eos =
      false;  // per_line: each whole line ends with the tokenizer's first EOS
  int64_t stride = 0;  // 0: windows do not overlap, rows of ids are cut at `length`
};
struct TextData {
  std::vector<std::vector<int32_t>> sequences;
  std::vector<int64_t> counted_from;  // one a sequence; empty: every prediction counts
  std::string description;  // "valid.txt, 300 sequences, 37578 tokens, sha256 ..."
};
// tokenizer may be null for a safetensors file.
Result<TextData> load_text(const std::filesystem::path& path, const Tokenizer* tokenizer,
                           int64_t vocabulary, const TextOptions& options);

// The safetensors file that load_text reads back to the same sequences, so that another tool
// can be run on the same tokens: input_ids I32 [sequences, longest], -1 after a shorter one's
// end. already_exists unless overwrite. Written under a temporary name and renamed.
Status save_token_sequences(const std::filesystem::path& path,
                            const std::vector<std::vector<int32_t>>& sequences,
                            bool overwrite);

// The lines of a UTF-8 text file, without the blanks at their ends.
Result<std::vector<std::string>> read_text_lines(const std::filesystem::path& path);

}  // namespace nibble
