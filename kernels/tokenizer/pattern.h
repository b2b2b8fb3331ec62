// What a Split, Replace or Strip of tokenizer.json looks for: a string or a regular
// expression.
//
// Regular expressions are Oniguruma's, as the tokenizers' own library reads them. The
// ones of GPT-2, Llama-3 and Qwen2 run in hand-written scanners (pre_tokenize.h), others
// in regex.h. Safe to call from any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/tokenizer/json_view.h"
#include "kernels/tokenizer/pre_tokenize.h"

namespace nibble {

class Regex;

struct Span {
  size_t begin = 0, end = 0;
};

class Pattern {
 public:
  static Pattern literal(std::string text);
  // unsupported: an expression that nibble cannot read (the message tells why).
  static Result<Pattern> regex(std::string_view expression, const char* where);

  // The matches from left to right; a regular expression may match nothing somewhere.
  Status find_all(std::string_view text, std::vector<Span>& matches) const;
  Status replace_all(std::string& text, std::string_view content) const;

 private:
  std::string literal_;
  SplitPattern scanner_ = SplitPattern::gpt2;
  bool is_scanner_ = false;
  std::shared_ptr<const Regex> regex_;
};

// {"String": text} or {"Regex": expression}.
Result<Pattern> read_pattern(JsonView json, const char* where);

}  // namespace nibble
