#include <algorithm>
#include <array>

#include "kernels/tokenizer/bpe_merge.h"
#include "kernels/tokenizer/models.h"
#include "kernels/tokenizer/unicode.h"
#include "kernels/tokenizer/word_cache.h"

namespace nibble {
namespace {

constexpr std::string_view kMeta = "\xe2\x96\x81";  // U+2581, SentencePiece's space

struct Bpe : BpeOptions {
  std::shared_ptr<const Vocabulary> vocabulary;
  std::unordered_map<uint64_t, Merge> merges;  // left id << 32 | right id
};

// Whether no merge makes a token that holds a U+2581 after another character. Merges then
// never cross the places where one begins: a text can be cut there, each word be merged
// alone.
bool words_are_apart(const Bpe& bpe) {
  for (const auto& [pair, merge] : bpe.merges) {
    const std::string_view piece =
        bpe.vocabulary->pieces[static_cast<size_t>(merge.merged)];
    size_t at = 0;
    while (piece.substr(at, kMeta.size()) == kMeta) at += kMeta.size();
    if (piece.find(kMeta, at) != std::string_view::npos) return false;
  }
  return true;
}

class BpeModel final : public TokenModel {
 public:
  explicit BpeModel(Bpe bpe) : bpe_(std::move(bpe)) {
    const Vocabulary& vocabulary = *bpe_.vocabulary;
    affixes_ = !bpe_.prefix.empty() || !bpe_.suffix.empty();
    for (size_t i = 0; i < ascii_.size(); ++i)
      ascii_[i] = vocabulary.find(std::string(1, static_cast<char>(i)));
    if (bpe_.byte_fallback) bytes_ = byte_tokens(vocabulary);
    if (!bpe_.unknown.empty()) unknown_id_ = vocabulary.find(bpe_.unknown);
    // Fused unknowns reach across words, but with every byte at hand there are none.
    const bool fuses = bpe_.fuse_unknown && !covers_bytes();
    words_are_apart_ = !affixes_ && !fuses && words_are_apart(bpe_);
  }

  Status tokenize(std::string_view piece, std::vector<int32_t>& ids) const override {
    if (bpe_.ignore_merges) {
      const int32_t id = bpe_.vocabulary->find(piece);
      if (id >= 0) {
        ids.push_back(id);
        return ok_status();
      }
    }
    if (!words_are_apart_ || piece.size() < 64) return merge_word(piece, ids);
    WordCache cache;
    for (size_t at = 0; at < piece.size();) {
      size_t end = at;
      while (piece.substr(end, kMeta.size()) == kMeta) end += kMeta.size();
      end = std::min(piece.find(kMeta, end), piece.size());
      NIBBLE_RETURN_IF_ERROR(
          cache.append(piece.substr(at, end - at), ids,
                       [&](std::string_view word) { return merge_word(word, ids); }));
      at = end;
    }
    return ok_status();
  }

 private:
  bool covers_bytes() const {
    return !bytes_.empty() && std::find(bytes_.begin(), bytes_.end(), -1) == bytes_.end();
  }

  Status merge_word(std::string_view word, std::vector<int32_t>& ids) const {
    std::vector<int32_t> symbols;
    symbols.reserve(word.size());
    NIBBLE_RETURN_IF_ERROR(push_characters(word, symbols));
    merge_symbols(symbols, [&](int32_t left, int32_t right) {
      const auto found = bpe_.merges.find(static_cast<uint64_t>(left) << 32 |
                                          static_cast<uint32_t>(right));
      return found == bpe_.merges.end() ? Merge{} : found->second;
    });
    ids.insert(ids.end(), symbols.begin(), symbols.end());
    return ok_status();
  }

  Status push_characters(std::string_view word, std::vector<int32_t>& symbols) const {
    bool unknown_waits = false;  // written when a known character or the end comes
    const auto flush = [&] {
      if (unknown_waits) symbols.push_back(unknown_id_);
      unknown_waits = false;
    };
    std::string affixed;
    for (size_t at = 0; at < word.size();) {
      const size_t length = static_cast<size_t>(character_at(word, at).length);
      std::string_view character = word.substr(at, length);
      if (affixes_) {
        affixed = at > 0 ? bpe_.prefix : "";
        affixed += character;
        if (at + length == word.size()) affixed += bpe_.suffix;
        character = affixed;
      }
      at += length;
      const int32_t id = character.size() == 1 && !(character[0] & 0x80)
                             ? ascii_[static_cast<size_t>(character[0])]
                             : bpe_.vocabulary->find(character);
      if (id >= 0) {
        flush();
        symbols.push_back(id);
      } else if (has_bytes(character)) {
        // An unknown that waits is written later: so do the files' own makers.
        for (char byte : character) symbols.push_back(bytes_[static_cast<uint8_t>(byte)]);
      } else {
        if (unknown_id_ < 0)  // not left out without a word, as others do
          return error(StatusCode::invalid_argument, "[tokenizer] text: \"", character,
                       "\" has no token, and the tokenizer has no unknown token; use one "
                       "that covers this text");
        if (!bpe_.fuse_unknown) flush();
        unknown_waits = true;
      }
    }
    flush();
    return ok_status();
  }

  bool has_bytes(std::string_view character) const {
    return !bytes_.empty() &&
           std::all_of(character.begin(), character.end(),
                       [&](char c) { return bytes_[static_cast<uint8_t>(c)] >= 0; });
  }

  Bpe bpe_;
  std::array<int32_t, 128> ascii_;
  std::vector<int32_t> bytes_;  // empty: no byte fallback
  int32_t unknown_id_ = -1;
  bool affixes_ = false, words_are_apart_ = false;
};

}  // namespace

Result<ModelParts> make_bpe(
    Vocabulary vocabulary,
    const std::vector<std::pair<std::string_view, std::string_view>>& merges,
    BpeOptions options, const char* file) {
  Bpe bpe{std::move(options), nullptr, {}};
  bpe.merges.reserve(merges.size());
  int32_t rank = 0;
  std::string together;
  for (const auto& [left, right] : merges) {
    // A continuing prefix stays at the front of what is merged only.
    together = left;
    together += right.substr(std::min(bpe.prefix.size(), right.size()));
    const int32_t a = vocabulary.find(left), b = vocabulary.find(right),
                  c = vocabulary.find(together);
    if (left.empty() || right.empty() || a < 0 || b < 0 || c < 0)
      return error(StatusCode::data_loss, "[tokenizer] ", file, ": merge ", rank,
                   " of two tokens into a third was required; found \"", left,
                   "\" and \"", right, "\"; the file is damaged");
    bpe.merges.insert_or_assign(static_cast<uint64_t>(a) << 32 | static_cast<uint32_t>(b),
                                Merge{rank, c});
    ++rank;
  }
  bpe.vocabulary = std::make_shared<const Vocabulary>(std::move(vocabulary));
  auto shared = bpe.vocabulary;
  return ModelParts{std::move(shared), std::make_unique<BpeModel>(std::move(bpe))};
}

Result<ModelParts> read_bpe(JsonView model) {
  if (const JsonView dropout = model["dropout"];
      dropout.exists() && dropout.number(1) != 0)
    return unknown_json(
        "model", "dropout null or 0 was required, for encoding must repeat; found ",
        dropout.dump());
  NIBBLE_ASSIGN_OR_RETURN(Vocabulary vocabulary,
                          read_vocabulary(model["vocab"], "model.vocab"));
  BpeOptions options;
  options.prefix = model["continuing_subword_prefix"].text();
  options.suffix = model["end_of_word_suffix"].text();
  options.unknown = model["unk_token"].text();
  options.byte_fallback = model["byte_fallback"].flag();
  options.fuse_unknown = model["fuse_unk"].flag();
  options.ignore_merges = model["ignore_merges"].flag();

  const JsonView list = model["merges"];
  if (!list.is_array())
    return damaged_json("model.merges", "a list was required; found ", list.dump());
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  for (const JsonView merge : list.elements()) {
    // "a b", or ["a", "b"] where tokens hold spaces.
    const std::string_view text = merge.text();
    const size_t space = text.find(' ');
    const bool pair = merge.is_array() && merge.size() == 2;
    if (space == std::string_view::npos && !pair)
      return damaged_json("model.merges", "merge ", merges.size(),
                          " of two tokens into a third was required; found ",
                          merge.dump());
    if (pair)
      merges.emplace_back(merge.at(0).text(), merge.at(1).text());
    else
      merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return make_bpe(std::move(vocabulary), merges, std::move(options),
                  "tokenizer.json model.merges");
}

}  // namespace nibble
