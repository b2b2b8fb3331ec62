#include <algorithm>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/tokenizer/bpe_merge.h"
#include "kernels/tokenizer/kinds.h"
#include "kernels/tokenizer/word_cache.h"

namespace nibble {
namespace {

constexpr int32_t kBos = 1, kEos = 2;
constexpr int32_t kFirstByte = 3;      // ids 3 .. 258 are the bytes <0x00> .. <0xFF>
constexpr size_t kSmallest = 3 + 256;  // unknown, BOS, EOS and the bytes

class Llama2cTokenizer final : public Tokenizer {
 public:
  Llama2cTokenizer(std::vector<std::string> pieces, const std::vector<float>& scores)
      : pieces_(std::move(pieces)), ranks_(pieces_.size()) {
    // Equal scores have equal ranks, so that the leftmost of them merges first.
    std::vector<size_t> order(pieces_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    int32_t rank = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      if (i > 0 && scores[order[i]] != scores[order[i - 1]]) ++rank;
      ranks_[order[i]] = rank;
    }
    for (size_t i = 0; i < pieces_.size(); ++i)
      ids_.emplace(pieces_[i],
                   static_cast<int32_t>(i));  // the first of equal pieces wins
    words_are_apart_ = words_are_apart();
  }

  Result<std::vector<int32_t>> encode(std::string_view text) const override {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, encode_without_special(text));
    ids.insert(ids.begin(), kBos);
    return ids;
  }

  Result<std::vector<int32_t>> encode_without_special(
      std::string_view text) const override {
    std::vector<int32_t> ids;
    if (text.empty()) return ids;
    const std::string spaced = " " + std::string(text);
    const std::string_view all = spaced;
    WordCache cache;
    for (size_t at = 0; at < all.size();) {
      size_t end = all.size();
      if (words_are_apart_) {
        end = std::min(all.find_first_not_of(' ', at), all.size());
        end = std::min(all.find(' ', end), all.size());
      }
      NIBBLE_RETURN_IF_ERROR(
          cache.append(all.substr(at, end - at), ids, [&](std::string_view word) {
            merge_word(word, ids);
            return ok_status();
          }));
      at = end;
    }
    return ids;
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string out;
    int32_t previous = -1;
    for (int32_t id : ids) {
      if (id >= 0 && static_cast<size_t>(id) < pieces_.size() && id != kBos &&
          id != kEos) {
        std::string_view piece = pieces_[static_cast<size_t>(id)];
        if (id >= kFirstByte && id < kFirstByte + 256) {
          out += static_cast<char>(id - kFirstByte);
        } else {
          if (previous == kBos && !piece.empty() && piece[0] == ' ')
            piece.remove_prefix(1);
          out += piece;
        }
      }
      previous = id;
    }
    return out;
  }

  int64_t vocabulary() const override { return static_cast<int64_t>(pieces_.size()); }
  int32_t bos() const override { return kBos; }
  // llama2.c models were trained on texts joined by BOS, so BOS ends one as well.
  std::vector<int32_t> eos() const override { return {kEos, kBos}; }

 private:
  // Whether no piece holds a space after another character: merges then never cross the
  // places where a word begins, and each word can be merged alone.
  bool words_are_apart() const {
    for (const std::string& piece : pieces_) {
      const size_t first = piece.find_first_not_of(' ');
      if (first != std::string::npos && piece.find(' ', first) != std::string::npos)
        return false;
    }
    return true;
  }

  void merge_word(std::string_view text, std::vector<int32_t>& ids) const {
    std::vector<int32_t> symbols;
    for (size_t at = 0; at < text.size();) {
      size_t length =
          1;  // a byte and the continuation bytes after it, at most four together
      while (length < 4 && at + length < text.size() &&
             (static_cast<uint8_t>(text[at + length]) & 0xc0) == 0x80)
        ++length;
      push_character(text.substr(at, length), symbols);
      at += length;
    }
    std::string joined;
    merge_symbols(symbols, [&](int32_t left, int32_t right) {
      joined = pieces_[static_cast<size_t>(left)];
      joined += pieces_[static_cast<size_t>(right)];
      const auto found = ids_.find(joined);
      if (found == ids_.end()) return Merge{};
      return Merge{ranks_[static_cast<size_t>(found->second)], found->second};
    });
    ids.insert(ids.end(), symbols.begin(), symbols.end());
  }

  void push_character(std::string_view character, std::vector<int32_t>& symbols) const {
    const auto found = ids_.find(std::string(character));
    if (found != ids_.end()) {
      symbols.push_back(found->second);
    } else {
      for (char byte : character)
        symbols.push_back(kFirstByte + static_cast<uint8_t>(byte));
    }
  }

  std::vector<std::string> pieces_;
  std::vector<int32_t> ranks_;
  std::unordered_map<std::string, int32_t> ids_;
  bool words_are_apart_ = false;
};

}  // namespace

Result<std::unique_ptr<Tokenizer>> make_llama2c_tokenizer(
    const std::map<std::string, Bytes>& files) {
  const std::string_view text = files.at("tokenizer.bin").text();
  size_t at = 0;
  const auto read = [&](auto* value) {
    if (text.size() - at < sizeof(*value)) return false;
    std::memcpy(value, text.data() + at, sizeof(*value));
    at += sizeof(*value);
    return true;
  };
  uint32_t longest = 0;
  std::vector<std::string> pieces;
  std::vector<float> scores;
  if (!read(&longest))
    return error(StatusCode::data_loss,
                 "[tokenizer] tokenizer.bin: a 4-byte header was required; found ",
                 text.size(), " bytes; the file is truncated");
  while (at < text.size()) {
    float score = 0;
    uint32_t length = 0;
    if (!read(&score) || !read(&length) || length > longest || length > text.size() - at)
      return error(StatusCode::data_loss, "[tokenizer] tokenizer.bin piece ",
                   pieces.size(), ": a score, a length of at most ", longest,
                   " and that many bytes were required; ", "the file of ", text.size(),
                   " bytes ends or disagrees at byte ", at,
                   "; it is damaged or not a tokenizer.bin");
    if (score != score)
      return error(StatusCode::data_loss, "[tokenizer] tokenizer.bin piece ",
                   pieces.size(),
                   ": a score was required; found NaN; the file is damaged");
    pieces.emplace_back(text.substr(at, length));
    scores.push_back(score);
    at += length;
  }
  if (pieces.size() < kSmallest)
    return error(StatusCode::data_loss, "[tokenizer] tokenizer.bin: at least ", kSmallest,
                 " pieces (unknown, BOS, EOS and 256 bytes) were required; found ",
                 pieces.size(), "; the file is truncated");
  return std::unique_ptr<Tokenizer>(new Llama2cTokenizer(std::move(pieces), scores));
}

}  // namespace nibble
