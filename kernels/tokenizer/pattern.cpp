#include "kernels/tokenizer/pattern.h"

#include "kernels/tokenizer/regex.h"

namespace nibble {

Pattern Pattern::literal(std::string text) {
  Pattern pattern;
  pattern.literal_ = std::move(text);
  return pattern;
}

Result<Pattern> Pattern::regex(std::string_view expression, const char* where) {
  Pattern pattern;
  for (SplitPattern known :
       {SplitPattern::gpt2, SplitPattern::llama3, SplitPattern::qwen2})
    if (expression == split_regex(known)) {
      pattern.is_scanner_ = true;
      pattern.scanner_ = known;
      return pattern;
    }
  NIBBLE_ASSIGN_OR_RETURN(Regex made, Regex::compile(expression, where));
  pattern.regex_ = std::make_shared<const Regex>(std::move(made));
  return pattern;
}

Status Pattern::find_all(std::string_view text, std::vector<Span>& matches) const {
  if (regex_) return regex_->find_all(text, matches);
  if (is_scanner_) {
    std::vector<std::string_view> pieces;
    split_text(text, scanner_, pieces);
    for (std::string_view piece : pieces) {
      const size_t begin = static_cast<size_t>(piece.data() - text.data());
      matches.push_back({begin, begin + piece.size()});
    }
    return ok_status();
  }
  if (literal_.empty()) return ok_status();
  for (size_t at = 0; (at = text.find(literal_, at)) != std::string_view::npos;
       at += literal_.size())
    matches.push_back({at, at + literal_.size()});
  return ok_status();
}

Status Pattern::replace_all(std::string& text, std::string_view content) const {
  std::vector<Span> matches;
  NIBBLE_RETURN_IF_ERROR(find_all(text, matches));
  if (matches.empty()) return ok_status();
  std::string out;
  size_t done = 0;
  for (const Span& match : matches) {
    out.append(text, done, match.begin - done);
    out += content;
    done = match.end;
  }
  out.append(text, done, std::string::npos);
  text = std::move(out);
  return ok_status();
}

Result<Pattern> read_pattern(JsonView json, const char* where) {
  if (json["String"].is_string())
    return Pattern::literal(std::string(json["String"].text()));
  if (json["Regex"].is_string()) return Pattern::regex(json["Regex"].text(), where);
  if (json.is_string()) return Pattern::literal(std::string(json.text()));
  return damaged_json(where,
                      "a pattern {\"String\": ...} or {\"Regex\": ...} was "
                      "required; found ",
                      json.dump());
}

}  // namespace nibble
