#include "kernels/tokenizer/pre_tokenize.h"

#include "kernels/tokenizer/unicode.h"

namespace nibble {
namespace {

enum class Kind : uint8_t { letter, number, space, symbol };

Kind kind_of(int32_t c) {
  if (c >= 0 && c < 0x80) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return Kind::letter;
    if (c >= '0' && c <= '9') return Kind::number;
    if (c == ' ' || (c >= 9 && c <= 13)) return Kind::space;
    return Kind::symbol;
  }
  if (is_space(c)) return Kind::space;
  if (is_letter(c)) return Kind::letter;
  if (is_number(c)) return Kind::number;
  return Kind::symbol;
}

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  bool ended(size_t at) const { return at >= text_.size(); }
  Character character(size_t at) const { return character_at(text_, at); }
  bool is(size_t at, Kind kind) const {
    return !ended(at) && kind_of(character(at).code_point) == kind;
  }
  // The end of the run of `kind` from `at`, at most `most` characters.
  size_t run(size_t at, Kind kind, size_t most = SIZE_MAX) const {
    for (size_t n = 0; n < most && !ended(at); ++n) {
      const Character c = character(at);
      if (kind_of(c.code_point) != kind) break;
      at += static_cast<size_t>(c.length);
    }
    return at;
  }
  bool newline(size_t at) const {
    return !ended(at) && (text_[at] == '\r' || text_[at] == '\n');
  }

  // The end of 's 't 're 've 'm 'll 'd at `at`, or `at`.
  size_t contraction(size_t at, bool any_case) const {
    if (text_[at] != '\'') return at;
    auto letter = [&](size_t i) -> char {
      if (i >= text_.size()) return 0;
      const char c = text_[i];
      return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    };
    switch (letter(at + 1)) {
      case 's':
      case 't':
      case 'm':
      case 'd':
        return at + 2;
      case 'r':
      case 'v':
        return letter(at + 2) == 'e' ? at + 3 : at;
      case 'l':
        return letter(at + 2) == 'l' ? at + 3 : at;
      default:
        // U+017F, the long s, is an s when case does not matter.
        if (any_case && text_.substr(at + 1, 2) == "\xc5\xbf") return at + 3;
        return at;
    }
  }
  // \s+(?!\S)|\s+ at a space: the run without its last character when something follows
  // it, unless that character is all there is.
  size_t spaces(size_t at) const {
    size_t end = at, last = at;
    while (is(end, Kind::space)) {
      last = end;
      end += static_cast<size_t>(character(end).length);
    }
    return ended(end) || last == at ? end : last;
  }

  size_t gpt2(size_t at) const {
    if (const size_t end = contraction(at, false); end > at) return end;
    const size_t word = text_[at] == ' ' ? at + 1 : at;
    for (Kind kind : {Kind::letter, Kind::number, Kind::symbol})
      if (is(word, kind)) return run(word, kind);
    return spaces(at);
  }

  size_t llama3(size_t at, size_t digits) const {
    if (const size_t end = contraction(at, true); end > at) return end;
    const Character first = character(at);
    const Kind kind = kind_of(first.code_point);
    if (kind == Kind::letter) return run(at, Kind::letter);
    const size_t next = at + static_cast<size_t>(first.length);
    if (kind != Kind::number && !newline(at) && is(next, Kind::letter))
      return run(next, Kind::letter);
    if (kind == Kind::number) return run(at, Kind::number, digits);
    const size_t symbols = text_[at] == ' ' ? at + 1 : at;
    if (is(symbols, Kind::symbol)) {
      size_t end = run(symbols, Kind::symbol);
      while (newline(end)) ++end;
      return end;
    }
    size_t after_newline = at;  // \s*[\r\n]+ ends after the last newline of the run
    for (size_t i = at; is(i, Kind::space); i += static_cast<size_t>(character(i).length))
      if (newline(i)) after_newline = i + 1;
    return after_newline > at ? after_newline : spaces(at);
  }

  size_t digits(size_t at, bool runs) const {
    if (is(at, Kind::number)) return run(at, Kind::number, runs ? SIZE_MAX : 1);
    while (!ended(at) && !is(at, Kind::number))
      at += static_cast<size_t>(character(at).length);
    return at;
  }

 private:
  std::string_view text_;
};

}  // namespace

void split_text(std::string_view text, SplitPattern pattern,
                std::vector<std::string_view>& pieces) {
  const Scanner scanner(text);
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    switch (pattern) {
      case SplitPattern::gpt2:
        end = scanner.gpt2(at);
        break;
      case SplitPattern::llama3:
        end = scanner.llama3(at, 3);
        break;
      case SplitPattern::qwen2:
        end = scanner.llama3(at, 1);
        break;
      case SplitPattern::digits:
        end = scanner.digits(at, false);
        break;
      case SplitPattern::digit_runs:
        end = scanner.digits(at, true);
    }
    pieces.push_back(text.substr(at, end - at));
    at = end;
  }
}

std::string_view split_regex(SplitPattern pattern) {
  switch (pattern) {
    case SplitPattern::gpt2:
      return R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
    case SplitPattern::llama3:
      return R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
             R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    case SplitPattern::qwen2:
      return R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
             R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    default:
      return "";
  }
}

}  // namespace nibble
