#include <cstdint>

#include "kernels/tokenizer/regex.h"

namespace nibble {
namespace {

// Oniguruma's classes as PCRE2 ranges; PCRE2's own \s and \w mean other sets.
constexpr const char* kSpace =
    R"(\t-\r\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr const char* kNoSpace =
    R"(\x00-\x08\x0e-\x1f\x21-\x84\x86-\x9f\xa1-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027})"
    R"(\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
// Alphabetic (with the letters in circles), mark, Nd, Pc, and Latin-1's small numbers.
constexpr const char* kWord =
    R"(\xb2\xb3\xb9\xbc-\xbe)"
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149})"
    R"(\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";
constexpr const char* kHex = "0-9A-Fa-f";

class Rewriter {
 public:
  Rewriter(std::string_view in, const char* where) : in_(in), where_(where) {}

  Result<std::string> run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        NIBBLE_RETURN_IF_ERROR(escape(false));
      } else if (c == '[') {
        NIBBLE_RETURN_IF_ERROR(set(0));
      } else if (c == '(') {
        NIBBLE_RETURN_IF_ERROR(group());
      } else if (c == '{') {
        NIBBLE_RETURN_IF_ERROR(interval());
      } else if (c == '^' || c == '$') {
        out_ += c == '^' ? "(?m:^)" : "(?m:$)";  // of a line, always
        ++at_;
      } else {
        out_ += c;
        ++at_;
      }
    }
    return out_;
  }

 private:
  Status refuse(std::string_view what) const {
    return error(StatusCode::unsupported, "[tokenizer] tokenizer.json ", where_,
                 ": a regular expression of literals, sets, groups and quantifiers was "
                 "required; found ",
                 what, " at byte ", at_, " of ", in_,
                 "; evaluate with token ids from a safetensors file instead");
  }
  bool next_is(char c, size_t ahead = 1) const {
    return at_ + ahead < in_.size() && in_[at_ + ahead] == c;
  }

  // At a backslash.
  Status escape(bool in_set) {
    if (at_ + 1 >= in_.size()) return refuse("a backslash at the end");
    const char c = in_[at_ + 1];
    const auto put = [&](const char* ranges, bool negated) {
      if (!in_set) out_ += negated ? "[^" : "[";
      out_ += ranges;
      if (!in_set) out_ += ']';
    };
    size_t used = 2;
    switch (c) {
      case 's':
        put(kSpace, false);
        break;
      case 'S':
        put(kNoSpace, false);
        break;
      case 'w':
        put(kWord, false);
        break;
      case 'W':
        if (in_set) return refuse("\\W in a set");
        put(kWord, true);
        break;
      case 'h':
        put(kHex, false);
        break;
      case 'H':
        if (in_set) return refuse("\\H in a set");
        put(kHex, true);
        break;
      case 'd':
        out_ += "\\p{Nd}";
        break;
      case 'D':
        out_ += "\\P{Nd}";
        break;
      case 'v':
        out_ += "\\x0b";
        break;
      case 'u': {
        const std::string_view digits = in_.substr(at_ + 2, 4);
        if (digits.size() != 4 ||
            digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos)
          return refuse("\\u without four hexadecimal digits");
        out_ += "\\x{";
        out_ += digits;
        out_ += '}';
        used = 6;
        break;
      }
      case 'b':
      case 'B':
        if (in_set) {
          if (c == 'B') return refuse("\\B in a set");
          out_ += "\\x08";
        } else {  // word boundaries by this syntax's idea of a word
          const std::string word = std::string("[") + kWord + "]";
          const char second = c == 'b' ? '!' : '=', third = c == 'b' ? '=' : '!';
          out_ += "(?:(?<=" + word + ")(?" + second + word + ")|(?<!" + word + ")(?" +
                  third + word + "))";
        }
        break;
      case 'p':
      case 'P': {
        const size_t close = in_.find('}', at_);
        if (!next_is('{', 2) || close == std::string_view::npos)
          return refuse("\\p without {name}");
        used = close + 1 - at_;
        out_ += in_.substr(at_, used);
        break;
      }
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'a':
      case 'e':
      case 'x':
      case 'A':
      case 'z':
      case 'Z':
        if (in_set && (c == 'A' || c == 'z' || c == 'Z'))
          return refuse("an anchor in a set");
        out_ += in_.substr(at_, 2);
        break;
      default:
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
          return refuse(in_.substr(at_, 2));
        out_ += in_.substr(at_, 2);
    }
    at_ += used;
    return ok_status();
  }

  // At a bracket. A set inside a set is united with it: its brackets go.
  Status set(int depth) {
    constexpr int kDeepest = 16;
    if (depth > kDeepest) return refuse("sets nested too deep");
    ++at_;
    const bool negated = at_ < in_.size() && in_[at_] == '^';
    if (negated && depth > 0) return refuse("a negated set inside a set");
    if (depth == 0) out_ += negated ? "[^" : "[";
    at_ += negated;
    for (bool first = true; at_ < in_.size(); first = false) {
      const char c = in_[at_];
      if (c == ']' && !first) {
        ++at_;
        if (depth == 0) out_ += ']';
        return ok_status();
      }
      if (c == '\\') {
        NIBBLE_RETURN_IF_ERROR(escape(true));
      } else if (c == '[') {
        if (next_is(':')) return refuse("a POSIX class");
        NIBBLE_RETURN_IF_ERROR(set(depth + 1));
      } else if (c == '&' && next_is('&')) {
        return refuse("an intersection of sets");
      } else {
        if (c == ']') out_ += '\\';  // first in a set: itself
        out_ += c;
        ++at_;
      }
    }
    return refuse("a set that does not end");
  }

  // At a parenthesis.
  Status group() {
    if (!next_is('?')) {
      out_ += '(';
      ++at_;
      return ok_status();
    }
    const char c = at_ + 2 < in_.size() ? in_[at_ + 2] : '\0';
    if (c == ':' || c == '=' || c == '!' || c == '>' || c == '<' || c == '#') {
      out_ += in_.substr(at_, 3);
      at_ += 3;
      return ok_status();
    }
    size_t end = at_ + 2;  // options: what it calls m is s to PCRE2
    std::string options;
    while (end < in_.size() &&
           (in_[end] == 'i' || in_[end] == 'm' || in_[end] == 'x' || in_[end] == '-')) {
      options += in_[end] == 'm' ? 's' : in_[end];
      ++end;
    }
    if (options.empty() || end >= in_.size() || (in_[end] != ':' && in_[end] != ')'))
      return refuse(in_.substr(at_, 4));
    out_ += "(?" + options + in_[end];
    at_ = end + 1;
    return ok_status();
  }

  // At a brace.
  Status interval() {
    const size_t close = in_.find('}', at_);
    const std::string_view inside = close == std::string_view::npos
                                        ? std::string_view()
                                        : in_.substr(at_ + 1, close - at_ - 1);
    const bool counts = !inside.empty() && inside != "," &&
                        inside.find_first_not_of("0123456789,") == std::string_view::npos;
    if (!counts) {
      out_ += "\\{";
      ++at_;
      return ok_status();
    }
    const char after = close + 1 < in_.size() ? in_[close + 1] : '\0';
    if (after == '+' || (after == '?' && inside.find(',') == std::string_view::npos))
      return refuse("a quantifier after an interval");  // not possessive, not lazy here
    out_ += '{';
    if (inside[0] == ',') out_ += '0';
    out_ += inside;
    out_ += '}';
    at_ = close + 1;
    return ok_status();
  }

  std::string_view in_;
  const char* where_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

Result<std::string> pcre2_syntax(std::string_view expression, const char* where) {
  return Rewriter(expression, where).run();
}

}  // namespace nibble
