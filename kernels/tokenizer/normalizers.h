// The normalizer of a tokenizer.json: steps that each rewrite a text.
//
// Known: NFC NFD NFKC NFKD Lowercase StripAccents BertNormalizer Strip Prepend Replace
// Precompiled Nmt ByteLevel Sequence. A step is invalid_argument when the text is not
// UTF-8 (the message names the byte). Safe to call from any thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/tokenizer/json_view.h"

namespace nibble {

using NormalizerStep = std::function<Status(std::string& text)>;

struct Normalizer {
  std::vector<NormalizerStep> steps;

  Status apply(std::string& text) const {
    for (const NormalizerStep& step : steps) NIBBLE_RETURN_IF_ERROR(step(text));
    return ok_status();
  }
};

// component: the section `normalizer`, nothing for none. unsupported: an unknown type.
Result<Normalizer> read_normalizer(JsonView component);

}  // namespace nibble
