#include "kernels/tokenizer/unigram.h"

#include <algorithm>
#include <cmath>

#include "kernels/tokenizer/models.h"

namespace nibble {
namespace {

class Unigram final : public TokenModel {
 public:
  Unigram(std::shared_ptr<const Vocabulary> vocabulary, std::vector<double> scores,
          int32_t unknown, bool byte_fallback)
      : vocabulary_(std::move(vocabulary)),
        scores_(std::move(scores)),
        unknown_(unknown),
        unknown_score_(*std::min_element(scores_.begin(), scores_.end()) -
                       kUnknownPenalty) {
    for (const auto& [piece, id] : vocabulary_->ids)
      if (!piece.empty()) trie_.add(piece, id);
    if (byte_fallback) bytes_ = byte_tokens(*vocabulary_);
  }

  Status tokenize(std::string_view piece, std::vector<int32_t>& ids) const override {
    std::vector<UnigramPart> parts;
    best_segmentation<double>(
        piece, trie_, unknown_score_,
        [&](int32_t id, size_t) { return scores_[static_cast<size_t>(id)]; }, parts);
    for (size_t i = 0; i < parts.size(); ++i) {
      const bool known = parts[i].id >= 0 && parts[i].id != unknown_;
      const size_t begin = parts[i].begin;
      size_t end = parts[i].end;
      if (known) {
        ids.push_back(parts[i].id);
        continue;
      }
      // Unknown characters side by side are one unknown token, or their bytes.
      while (i + 1 < parts.size() && (parts[i + 1].id < 0 || parts[i + 1].id == unknown_))
        end = parts[++i].end;
      NIBBLE_RETURN_IF_ERROR(push_unknown(piece.substr(begin, end - begin), ids));
    }
    return ok_status();
  }

 private:
  Status push_unknown(std::string_view text, std::vector<int32_t>& ids) const {
    if (const int32_t id = vocabulary_->find(text); id >= 0) {
      ids.push_back(id);  // together they may spell a piece, "<unk>" itself for one
      return ok_status();
    }
    const auto has_token = [&](char byte) {
      return bytes_[static_cast<uint8_t>(byte)] >= 0;
    };
    if (!bytes_.empty() && std::all_of(text.begin(), text.end(), has_token)) {
      for (char byte : text) ids.push_back(bytes_[static_cast<uint8_t>(byte)]);
      return ok_status();
    }
    if (unknown_ < 0)
      return error(StatusCode::invalid_argument, "[tokenizer] text: \"", text,
                   "\" has no token, and tokenizer.json has no unk_id; use a tokenizer "
                   "that covers this text");
    ids.push_back(unknown_);
    return ok_status();
  }

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<double> scores_;  // by id
  int32_t unknown_;
  double unknown_score_;
  Trie trie_;
  std::vector<int32_t> bytes_;  // empty: no byte fallback
};

}  // namespace

Result<ModelParts> read_unigram(JsonView model) {
  const JsonView list = model["vocab"];
  if (!list.is_array() || list.size() == 0)
    return damaged_json("model.vocab", "a list of [piece, score] was required; found ",
                        list.dump());
  Vocabulary vocabulary;
  std::vector<double> scores;
  for (const JsonView entry : list.elements()) {
    const JsonView score = entry.at(1);
    if (!entry.at(0).is_string() || !score.is_number() || !std::isfinite(score.number()))
      return damaged_json("model.vocab", "entry ", scores.size(),
                          " [piece, score] was required; found ", entry.dump());
    vocabulary.put(std::string(entry.at(0).text()), static_cast<int32_t>(scores.size()));
    scores.push_back(score.number());
  }
  const JsonView unknown = model["unk_id"];
  if (unknown.exists() &&
      (unknown.id() < 0 || static_cast<size_t>(unknown.id()) >= scores.size()))
    return damaged_json("model.unk_id", "an id below ", scores.size(),
                        " was required; found ", unknown.dump());
  auto shared = std::make_shared<const Vocabulary>(std::move(vocabulary));
  auto unigram = std::make_unique<Unigram>(shared, std::move(scores), unknown.id(),
                                           model["byte_fallback"].flag());
  return ModelParts{std::move(shared), std::move(unigram)};
}

}  // namespace nibble
