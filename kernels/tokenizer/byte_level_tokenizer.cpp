#include "kernels/tokenizer/byte_level_tokenizer.h"

#include <array>
#include <deque>

namespace nibble {
namespace {

class ByteLevelTokenizer final : public Tokenizer {
 public:
  explicit ByteLevelTokenizer(ByteLevelBpe bpe)
      : bpe_(std::move(bpe)), special_(bpe_.pieces.size()) {
    for (int byte = 0; byte < 256; ++byte) {
      const auto found = bpe_.vocabulary.find(std::string(1, static_cast<char>(byte)));
      bytes_[static_cast<size_t>(byte)] =
          found == bpe_.vocabulary.end() ? bpe_.unknown : found->second;
    }
    for (const AddedToken& token : bpe_.added) {
      (token.normalized ? after_normalizer_ : before_normalizer_).add(token);
      special_[static_cast<size_t>(token.id)] = token.special;
    }
  }

  Result<std::vector<int32_t>> encode(std::string_view text) const override {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, encode_without_special(text));
    ids.insert(ids.begin(), bpe_.prefix.begin(), bpe_.prefix.end());
    ids.insert(ids.end(), bpe_.suffix.begin(), bpe_.suffix.end());
    return ids;
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
        NIBBLE_RETURN_IF_ERROR(encode_segment(segment.text, ids));
    }
    return ids;
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string out;
    for (int32_t id : ids)
      if (id >= 0 && static_cast<size_t>(id) < bpe_.pieces.size() &&
          !special_[static_cast<size_t>(id)])
        out += bpe_.pieces[static_cast<size_t>(id)];
    return replace_invalid_utf8(out);
  }

  int64_t vocabulary() const override { return static_cast<int64_t>(bpe_.pieces.size()); }
  int32_t bos() const override { return bpe_.prefix.empty() ? -1 : bpe_.prefix.front(); }
  std::vector<int32_t> eos() const override { return bpe_.eos; }

 private:
  // The ids of pieces met before in this text, as [first, last) of `ids`.
  using Cache = std::unordered_map<std::string_view, std::pair<size_t, size_t>>;

  Status encode_segment(std::string_view text, std::vector<int32_t>& ids) const {
    std::string normalized;
    for (NormalForm form : bpe_.normalizers) {
      NIBBLE_ASSIGN_OR_RETURN(normalized, normalize(text, form));
      text = normalized;
    }
    std::vector<Segment> segments;
    after_normalizer_.split(text, segments);
    for (const Segment& segment : segments) {
      if (segment.id >= 0) {
        ids.push_back(segment.id);
        continue;
      }
      std::deque<std::string> prefixed;  // keeps the pieces that are not views of text
      std::vector<std::string_view> pieces = {segment.text}, next;
      for (const PreTokenizeStage& stage : bpe_.stages) {
        next.clear();
        for (std::string_view piece : pieces) {
          if (!stage.prefix_space) {
            split_text(piece, stage.pattern, next);
          } else if (piece.substr(0, 1) == " ") {
            next.push_back(piece);
          } else {
            next.push_back(prefixed.emplace_back(" " + std::string(piece)));
          }
        }
        pieces.swap(next);
      }
      Cache cache;
      for (std::string_view piece : pieces) {
        const auto [found, is_new] = cache.try_emplace(piece, ids.size(), ids.size());
        if (is_new) {
          NIBBLE_RETURN_IF_ERROR(encode_piece(piece, ids));
          found->second.second = ids.size();
        } else {
          for (size_t i = found->second.first; i < found->second.second; ++i)
            ids.push_back(ids[i]);
        }
      }
    }
    return ok_status();
  }

  Status encode_piece(std::string_view piece, std::vector<int32_t>& ids) const {
    if (bpe_.ignore_merges) {
      const auto found = bpe_.vocabulary.find(std::string(piece));
      if (found != bpe_.vocabulary.end()) {
        ids.push_back(found->second);
        return ok_status();
      }
    }
    std::vector<int32_t> symbols;
    symbols.reserve(piece.size());
    for (char byte : piece) {
      const int32_t id = bytes_[static_cast<uint8_t>(byte)];
      if (id < 0)
        return error(StatusCode::invalid_argument,
                     "[tokenizer] tokenizer.json: a token for every byte of the text was "
                     "required; byte ",
                     static_cast<int>(static_cast<uint8_t>(byte)),
                     " has none; use a tokenizer trained with the whole byte alphabet");
      symbols.push_back(id);
    }
    merge_symbols(symbols, [&](int32_t left, int32_t right) {
      const auto found = bpe_.merges.find(static_cast<uint64_t>(left) << 32 |
                                          static_cast<uint32_t>(right));
      return found == bpe_.merges.end() ? Merge{} : found->second;
    });
    ids.insert(ids.end(), symbols.begin(), symbols.end());
    return ok_status();
  }

  ByteLevelBpe bpe_;
  std::array<int32_t, 256> bytes_;
  AddedTokenMatcher before_normalizer_, after_normalizer_;
  std::vector<bool> special_;  // by id
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(ByteLevelBpe bpe) {
  return std::make_unique<ByteLevelTokenizer>(std::move(bpe));
}

}  // namespace nibble
