#include "kernels/tokenizer/sentence_piece.h"

#include <algorithm>
#include <queue>
#include <unordered_map>

#include "kernels/tokenizer/decoders.h"
#include "kernels/tokenizer/models.h"
#include "kernels/tokenizer/trie.h"
#include "kernels/tokenizer/unicode.h"
#include "kernels/tokenizer/unigram.h"
#include "kernels/tokenizer/word_cache.h"

namespace nibble {
namespace {

constexpr std::string_view kMeta = "\xe2\x96\x81";  // U+2581
constexpr std::string_view kReplacement = "\xef\xbf\xbd";

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(SentencePieceModel model, SpecialTokens special)
      : model_(std::move(model)), special_(std::move(special)) {
    float least = 0, greatest = 0;
    bool any = false;
    for (size_t i = 0; i < model_.pieces.size(); ++i) {
      const SentencePiece& piece = model_.pieces[i];
      const int32_t id = static_cast<int32_t>(i);
      const bool mergeable = piece.type == PieceType::normal ||
                             piece.type == PieceType::user_defined ||
                             piece.type == PieceType::unused;
      (mergeable ? pieces_ : reserved_).emplace(piece.text, id);
      if (mergeable && piece.type != PieceType::unused) trie_.add(piece.text, id);
      if (piece.type == PieceType::user_defined) {
        user_defined_.add(piece.text, id);
        has_user_defined_ = true;
      }
      if (mergeable) words_are_apart_ &= starts_with_its_spaces(piece.text);
      if (piece.type == PieceType::normal) {
        least = any ? std::min(least, piece.score) : piece.score;
        greatest = any ? std::max(greatest, piece.score) : piece.score;
        any = true;
      }
    }
    unknown_score_ = least - static_cast<float>(kUnknownPenalty);
    greatest_score_ = greatest;
    byte_ids_.assign(256, model_.unknown);
    for (size_t i = 0; i < model_.pieces.size(); ++i)
      if (model_.pieces[i].type == PieceType::byte)
        if (const int byte = byte_of_token(model_.pieces[i].text); byte >= 0)
          byte_ids_[static_cast<size_t>(byte)] = static_cast<int32_t>(i);
  }

  Result<std::vector<int32_t>> encode(std::string_view text) const override {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, encode_without_special(text));
    if (special_.add_bos) ids.insert(ids.begin(), model_.bos);
    if (special_.add_eos) ids.push_back(model_.eos);
    return ids;
  }

  Result<std::vector<int32_t>> encode_without_special(
      std::string_view text) const override {
    const std::string normalized = normalized_text(text);
    std::vector<int32_t> ids;
    if (model_.is_bpe)
      NIBBLE_RETURN_IF_ERROR(encode_bpe(normalized, ids));
    else
      encode_unigram(normalized, ids);
    // Unknown pieces side by side are one.
    ids.erase(std::unique(ids.begin(), ids.end(),
                          [&](int32_t a, int32_t b) {
                            return a == model_.unknown && b == model_.unknown;
                          }),
              ids.end());
    return ids;
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string out, bytes;
    bool at_start = true, stripped = false;
    const auto flush = [&] {
      for (size_t at = 0; at < bytes.size();) {  // each byte that is not UTF-8 by itself
        const Character c = character_at(bytes, at);
        const size_t length = static_cast<size_t>(c.length);
        out +=
            c.code_point < 0 ? kReplacement : std::string_view(bytes).substr(at, length);
        at += length;
      }
      bytes.clear();
    };
    for (int32_t id : ids) {
      if (id < 0 || static_cast<size_t>(id) >= model_.pieces.size()) continue;
      const SentencePiece& piece = model_.pieces[static_cast<size_t>(id)];
      if (piece.type == PieceType::byte) {
        bytes += static_cast<char>(std::max(byte_of_token(piece.text), 0));
        continue;
      }
      flush();
      if (stripped || !out.empty()) at_start = false;
      stripped = append_piece(piece, at_start, out);
    }
    flush();
    return out;
  }

  int64_t vocabulary() const override {
    return static_cast<int64_t>(model_.pieces.size());
  }
  int32_t bos() const override { return special_.add_bos ? model_.bos : -1; }
  std::vector<int32_t> eos() const override { return special_.eos; }

 private:
  static bool starts_with_its_spaces(std::string_view piece) {
    size_t at = 0;
    while (piece.substr(at, kMeta.size()) == kMeta) at += kMeta.size();
    return piece.find(kMeta, at) == std::string_view::npos;
  }

  // Whether the space that the normalizer had put first was dropped.
  bool append_piece(const SentencePiece& piece, bool at_start, std::string& out) const {
    if (piece.type == PieceType::control) return false;
    if (piece.type == PieceType::unknown) {
      out += model_.unknown_surface;
      return false;
    }
    std::string_view text = piece.text;
    bool dropped = false;
    if (at_start && (model_.add_dummy_prefix || model_.remove_extra_whitespaces) &&
        text.substr(0, kMeta.size()) == kMeta) {
      text.remove_prefix(kMeta.size());
      dropped = !model_.remove_extra_whitespaces;  // else all leading ones go
    }
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find(kMeta, at), text.size());
      out += text.substr(at, end - at);
      at = end;
      if (at < text.size()) {
        out += ' ';
        at += kMeta.size();
      }
    }
    return dropped;
  }

  // What text[at..] begins with and what stands for it.
  Charsmap::Match prefix(std::string_view rest) const {
    if (has_user_defined_)
      if (const Trie::Match match = user_defined_.longest(rest, 0); match.length > 0)
        return {match.length, rest.substr(0, match.length)};
    if (model_.charsmap)
      if (const Charsmap::Match match = model_.charsmap->longest(rest); match.length > 0)
        return match;
    const Character c = character_at(rest, 0);
    const size_t length = static_cast<size_t>(c.length);
    return {length, c.code_point < 0 ? kReplacement : rest.substr(0, length)};
  }

  std::string normalized_text(std::string_view text) const {
    const bool trim = model_.remove_extra_whitespaces;
    const std::string_view space = model_.escape_whitespaces ? kMeta : " ";
    std::string out;
    while (trim && !text.empty()) {
      const Charsmap::Match match = prefix(text);
      if (match.replacement != " ") break;
      text.remove_prefix(match.length);
    }
    if (text.empty()) return out;
    out.reserve(text.size() + text.size() / 4);
    if (model_.add_dummy_prefix && !model_.whitespace_as_suffix) out += space;
    bool after_space = trim;
    while (!text.empty()) {
      Charsmap::Match match = prefix(text);
      text.remove_prefix(match.length);
      std::string_view put = match.replacement;
      while (after_space && !put.empty() && put[0] == ' ') put.remove_prefix(1);
      if (!put.empty()) {
        for (char byte : put)
          if (byte == ' ')
            out += space;
          else
            out += byte;
        after_space = put.back() == ' ';
      }
      if (!trim) after_space = false;
    }
    while (trim && out.size() >= space.size() &&
           std::string_view(out).substr(out.size() - space.size()) == space)
      out.resize(out.size() - space.size());
    if (model_.add_dummy_prefix && model_.whitespace_as_suffix) out += space;
    return out;
  }

  void push_unknown(std::string_view text, std::vector<int32_t>& ids) const {
    if (!model_.byte_fallback)
      ids.push_back(model_.unknown);
    else
      for (char byte : text) ids.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
  }

  void encode_unigram(std::string_view text, std::vector<int32_t>& ids) const {
    std::vector<UnigramPart> parts;
    best_segmentation<float>(
        text, trie_, unknown_score_,
        [&](int32_t id, size_t) {
          const SentencePiece& piece = model_.pieces[static_cast<size_t>(id)];
          return piece.type == PieceType::user_defined
                     ? static_cast<float>(count_characters(piece.text)) *
                               greatest_score_ -
                           0.1f  // a bonus: what the user defined is nearly always taken
                     : piece.score;
        },
        parts);
    for (const UnigramPart& part : parts)
      if (part.id >= 0)
        ids.push_back(part.id);
      else
        push_unknown(text.substr(part.begin, part.end - part.begin), ids);
  }

  Status encode_bpe(std::string_view text, std::vector<int32_t>& ids) const {
    if (!words_are_apart_) {
      merge_word(text, ids);
      return ok_status();
    }
    // No piece holds a space after another character, so words merge each for itself.
    WordCache cache;
    for (size_t at = 0; at < text.size();) {
      size_t end = at;
      while (text.substr(end, kMeta.size()) == kMeta) end += kMeta.size();
      end = std::min(text.find(kMeta, end), text.size());
      NIBBLE_RETURN_IF_ERROR(
          cache.append(text.substr(at, end - at), ids, [&](std::string_view word) {
            merge_word(word, ids);
            return ok_status();
          }));
      at = end;
    }
    return ok_status();
  }

  struct Symbol {
    size_t begin, size;  // size 0: merged into the one before
    int32_t previous, next;
    bool frozen;
  };
  struct Candidate {
    float score;
    int32_t left, right;
    size_t size;
    bool operator<(const Candidate& other) const {  // the queue's top is the greatest
      if (score != other.score) return score < other.score;
      return left > other.left;
    }
  };
  // What an unused piece was merged from: it is cut there again.
  using Origins =
      std::unordered_map<std::string_view, std::pair<std::string_view, std::string_view>>;

  void merge_word(std::string_view text, std::vector<int32_t>& ids) const {
    std::vector<Symbol> symbols;
    symbols.reserve(text.size());
    for (size_t at = 0; at < text.size();) {
      size_t length = 0;
      if (has_user_defined_) length = user_defined_.longest(text, at).length;
      const bool frozen = length > 0;
      if (!frozen) length = static_cast<size_t>(character_at(text, at).length);
      const int32_t index = static_cast<int32_t>(symbols.size());
      symbols.push_back({at, length, index - 1, index + 1, frozen});
      at += length;
    }
    if (symbols.empty()) return;
    symbols.back().next = -1;

    std::priority_queue<Candidate> queue;
    Origins origins;
    const auto consider = [&](int32_t left, int32_t right) {
      if (left < 0 || right < 0) return;
      const Symbol& a = symbols[static_cast<size_t>(left)];
      const Symbol& b = symbols[static_cast<size_t>(right)];
      if (a.frozen || b.frozen) return;
      const std::string_view both = text.substr(a.begin, a.size + b.size);
      const auto found = pieces_.find(both);
      if (found == pieces_.end()) return;
      const SentencePiece& piece = model_.pieces[static_cast<size_t>(found->second)];
      queue.push({piece.score, left, right, both.size()});
      if (piece.type == PieceType::unused)
        origins[both] = {both.substr(0, a.size), both.substr(a.size)};
    };
    for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i)
      consider(i, i + 1);
    while (!queue.empty()) {
      const Candidate top = queue.top();
      queue.pop();
      Symbol& left = symbols[static_cast<size_t>(top.left)];
      Symbol& right = symbols[static_cast<size_t>(top.right)];
      if (left.size == 0 || right.size == 0 || left.size + right.size != top.size)
        continue;
      left.size = top.size;
      right.size = 0;
      left.next = right.next;
      if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = top.left;
      consider(left.previous, top.left);
      consider(top.left, left.next);
    }
    for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
      const Symbol& symbol = symbols[static_cast<size_t>(i)];
      push_piece(text.substr(symbol.begin, symbol.size), origins, ids);
    }
  }

  void push_piece(std::string_view text, const Origins& origins,
                  std::vector<int32_t>& ids) const {
    std::vector<std::string_view> open = {text};
    while (!open.empty()) {
      const std::string_view piece = open.back();
      open.pop_back();
      const int32_t id = find(piece);
      if (id >= 0 && model_.pieces[static_cast<size_t>(id)].type == PieceType::unused) {
        if (const auto origin = origins.find(piece); origin != origins.end()) {
          open.push_back(origin->second.second);
          open.push_back(origin->second.first);
          continue;
        }
      }
      if (id >= 0 && id != model_.unknown)
        ids.push_back(id);
      else
        push_unknown(piece, ids);
    }
  }

  int32_t find(std::string_view text) const {
    if (const auto found = reserved_.find(text); found != reserved_.end())
      return found->second;
    const auto found = pieces_.find(text);
    return found == pieces_.end() ? -1 : found->second;
  }

  SentencePieceModel model_;
  SpecialTokens special_;
  std::unordered_map<std::string_view, int32_t> pieces_, reserved_;  // views of model_
  Trie trie_, user_defined_;
  bool has_user_defined_ = false, words_are_apart_ = true;
  float unknown_score_ = 0, greatest_score_ = 0;
  std::vector<int32_t> byte_ids_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(SentencePieceModel model,
                                          SpecialTokens special) {
  return std::make_unique<SentencePieceTokenizer>(std::move(model), std::move(special));
}

}  // namespace nibble
