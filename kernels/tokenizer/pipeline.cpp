#include "kernels/tokenizer/pipeline.h"

#include <algorithm>

#include "kernels/tokenizer/word_cache.h"

namespace nibble {
namespace {

class PipelineTokenizer final : public Tokenizer {
 public:
  explicit PipelineTokenizer(Pipeline parts) : parts_(std::move(parts)) {
    const Vocabulary& vocabulary = *parts_.model.vocabulary;
    size_t count = vocabulary.pieces.size();
    for (const AddedToken& token : parts_.added)
      count = std::max(count, static_cast<size_t>(token.id) + 1);
    tokens_.resize(count);
    for (const auto& [piece, id] : vocabulary.ids) {
      Token& token = tokens_[static_cast<size_t>(id)];
      token.exists = true;
    }
    for (size_t i = 0; i < vocabulary.pieces.size(); ++i) {
      tokens_[i].text = vocabulary.pieces[i];
      tokens_[i].exists |= !tokens_[i].text.empty();
    }
    for (const AddedToken& added : parts_.added) {
      (added.normalized ? after_normalizer_ : before_normalizer_).add(added);
      // What is looked for in normalized text is also written that way.
      tokens_[static_cast<size_t>(added.id)] = {added.content, true, added.special};
    }
  }

  Result<std::vector<int32_t>> encode(std::string_view text) const override {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> inner,
                            encode_without_special(text));
    std::vector<int32_t> ids;
    for (const TemplateItem& item : parts_.post_processor.single) {
      const std::vector<int32_t>& next = item.text == 0 ? inner : item.ids;
      ids.insert(ids.end(), next.begin(), next.end());
    }
    return ids;
  }

  Result<TypedIds> encode_pair(std::string_view first,
                               std::string_view second) const override {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> a, encode_without_special(first));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> b, encode_without_special(second));
    TypedIds out;
    for (const TemplateItem& item : parts_.post_processor.pair) {
      const std::vector<int32_t>& next = item.text == 0   ? a
                                         : item.text == 1 ? b
                                                          : item.ids;
      out.ids.insert(out.ids.end(), next.begin(), next.end());
      out.types.resize(out.ids.size(), item.type);
    }
    return out;
  }

  Result<std::vector<int32_t>> encode_without_special(
      std::string_view text) const override {
    std::vector<int32_t> ids;
    std::vector<Segment> segments;
    before_normalizer_.split(text, segments);
    for (const Segment& segment : segments) {
      if (segment.id >= 0)
        ids.push_back(segment.id);
      else
        NIBBLE_RETURN_IF_ERROR(
            encode_segment(segment.text, segment.text.data() == text.data(), ids));
    }
    return ids;
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::vector<std::string> texts;
    for (int32_t id : ids)
      if (id >= 0 && static_cast<size_t>(id) < tokens_.size() &&
          tokens_[static_cast<size_t>(id)].exists &&
          !tokens_[static_cast<size_t>(id)].special)
        texts.push_back(tokens_[static_cast<size_t>(id)].text);
    return parts_.decoder.decode(std::move(texts));
  }

  int64_t vocabulary() const override { return static_cast<int64_t>(tokens_.size()); }
  int32_t bos() const override { return parts_.post_processor.first_id(); }
  std::vector<int32_t> eos() const override { return parts_.eos; }

 private:
  struct Token {
    std::string text;
    bool exists = false, special = false;
  };

  Status encode_segment(std::string_view text, bool first,
                        std::vector<int32_t>& ids) const {
    std::string normalized;
    if (!parts_.normalizer.steps.empty()) {
      normalized = text;
      NIBBLE_RETURN_IF_ERROR(parts_.normalizer.apply(normalized));
      text = normalized;
    }
    std::vector<Segment> segments;
    after_normalizer_.split(text, segments);
    for (const Segment& segment : segments) {
      if (segment.id >= 0) {
        ids.push_back(segment.id);
        continue;
      }
      Pieces pieces;
      pieces.list = {{segment.text, first && segment.text.data() == text.data()}};
      for (const PreTokenizerStep& step : parts_.pre_tokenizer)
        NIBBLE_RETURN_IF_ERROR(step(pieces));
      WordCache cache;
      for (const Piece& piece : pieces.list)
        NIBBLE_RETURN_IF_ERROR(cache.append(piece.text, ids, [&](std::string_view word) {
          return parts_.model.model->tokenize(word, ids);
        }));
    }
    return ok_status();
  }

  Pipeline parts_;
  std::vector<Token> tokens_;  // by id
  AddedTokenMatcher before_normalizer_, after_normalizer_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(Pipeline pipeline) {
  return std::make_unique<PipelineTokenizer>(std::move(pipeline));
}

}  // namespace nibble
