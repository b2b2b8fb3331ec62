// The post-processor of a tokenizer.json: which special tokens go around one text or two.
//
// Known: TemplateProcessing BertProcessing RobertaProcessing ByteLevel (which only moves
// offsets, and nibble reports none) Sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/tokenizer/json_view.h"

namespace nibble {

struct TemplateItem {
  int text = -1;             // 0: the first text, 1: the second, -1: the ids
  std::vector<int32_t> ids;  // special tokens
  int32_t type = 0;          // the token type of all of these
};

struct PostProcessor {
  std::vector<TemplateItem> single = {{0, {}, 0}};
  std::vector<TemplateItem> pair = {{0, {}, 0}, {1, {}, 1}};

  // The special tokens that single puts first.
  int32_t first_id() const {
    for (const TemplateItem& item : single) {
      if (item.text >= 0) break;
      if (!item.ids.empty()) return item.ids.front();
    }
    return -1;
  }
};

// ids of special tokens must be below `ids`. unsupported: an unknown type, or more than
// one that adds tokens. data_loss: a template names a token that it does not define.
Result<PostProcessor> read_post_processor(JsonView component, int64_t ids);

}  // namespace nibble
