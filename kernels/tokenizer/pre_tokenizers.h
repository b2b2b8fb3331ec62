// The pre-tokenizer of a tokenizer.json: steps that each cut, drop or change pieces of a
// text.
//
// Known: ByteLevel Split BertPreTokenizer Metaspace Whitespace WhitespaceSplit
// Punctuation Digits CharDelimiterSplit FixedLength Sequence. Safe to call from any
// thread.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/tokenizer/json_view.h"

namespace nibble {

struct Piece {
  std::string_view text;  // not empty
  bool first = false;     // begins where the whole text begins
};

struct Pieces {
  std::vector<Piece> list;
  std::deque<std::string> changed;  // owns what the text does not
};

using PreTokenizerStep = std::function<Status(Pieces& pieces)>;

// component: the section `pre_tokenizer`, nothing for none. unsupported: an unknown type,
// or an expression that regex.h cannot read.
Result<std::vector<PreTokenizerStep>> read_pre_tokenizer(JsonView component);

}  // namespace nibble
