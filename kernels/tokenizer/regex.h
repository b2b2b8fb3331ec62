// A regular expression of Oniguruma's syntax, as tokenizer.json holds them, run by PCRE2.
//
// Read: literals, ., classes with nested sets, \p{..} \s \S \d \D \w \W \h \H and other
// escapes, groups (capturing, (?:, (?i:, look-ahead and look-behind), alternation,
// greedy, lazy and possessive quantifiers. Where the two syntaxes differ the expression
// is rewritten; what cannot be is unsupported. Safe to call from any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

struct Span;

class Regex {
 public:
  // unsupported: PCRE2 or the rewriting refuses (the message tells what and where).
  static Result<Regex> compile(std::string_view expression, const char* where);

  // The matches from left to right, empty ones between others too. invalid_argument: text
  // is not UTF-8. resource_exhausted: matching took too many steps.
  Status find_all(std::string_view text, std::vector<Span>& matches) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

// The expression in PCRE2's syntax (for tests; compile calls it).
Result<std::string> pcre2_syntax(std::string_view expression, const char* where);

}  // namespace nibble
