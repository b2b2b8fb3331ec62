#include "kernels/tokenizer/pre_tokenizers.h"

#include "kernels/tokenizer/byte_alphabet.h"
#include "kernels/tokenizer/pattern.h"
#include "kernels/tokenizer/sections.h"
#include "kernels/tokenizer/unicode.h"

namespace nibble {
namespace {

constexpr const char* kWhere = "pre_tokenizer";

// What becomes of the matches that a piece is cut at.
enum class Behavior : uint8_t {
  removed,
  isolated,
  merged_with_previous,
  merged_with_next,
  contiguous,  // matches side by side are one piece
};

Result<Behavior> read_behavior(JsonView json, Behavior otherwise) {
  if (!json.exists()) return otherwise;
  const std::string_view name = json.text();
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  return unknown_json(kWhere,
                      "behavior Removed, Isolated, MergedWithPrevious, MergedWithNext or "
                      "Contiguous was required; found ",
                      json.dump());
}

struct Part {
  size_t begin, end;
  bool match;
};

// The matches and what lies between them.
void complete(const std::vector<Span>& matches, size_t size, bool invert,
              std::vector<Part>& parts) {
  size_t done = 0;
  for (const Span& match : matches) {
    if (match.begin > done) parts.push_back({done, match.begin, invert});
    parts.push_back({match.begin, match.end, !invert});
    done = match.end;
  }
  if (done < size) parts.push_back({done, size, invert});
}

void apply(Behavior behavior, std::vector<Part>& parts) {
  std::vector<Part> out;
  switch (behavior) {
    case Behavior::isolated:
      return;
    case Behavior::removed:
      for (const Part& part : parts)
        if (!part.match) out.push_back(part);
      break;
    case Behavior::contiguous:
      for (const Part& part : parts)
        if (!out.empty() && out.back().match == part.match)
          out.back().end = part.end;
        else
          out.push_back(part);
      break;
    case Behavior::merged_with_previous:
      for (const Part& part : parts) {
        if (part.match && !out.empty() && !out.back().match)
          out.back() = {out.back().begin, part.end, true};
        else
          out.push_back(part);
      }
      break;
    case Behavior::merged_with_next:
      for (const Part& part : parts) {
        if (!out.empty() && out.back().match && !part.match)
          out.back() = {out.back().begin, part.end, false};
        else
          out.push_back(part);
      }
  }
  parts = std::move(out);
}

// find(text, matches) -> Status
template <class Find>
Status split_pieces(Pieces& pieces, Behavior behavior, bool invert, const Find& find) {
  std::vector<Piece> out;
  std::vector<Span> matches;
  std::vector<Part> parts;
  for (const Piece& piece : pieces.list) {
    matches.clear();
    parts.clear();
    NIBBLE_RETURN_IF_ERROR(find(piece.text, matches));
    complete(matches, piece.text.size(), invert, parts);
    apply(behavior, parts);
    for (const Part& part : parts)
      if (part.end > part.begin)
        out.push_back({piece.text.substr(part.begin, part.end - part.begin),
                       piece.first && part.begin == 0});
  }
  pieces.list.swap(out);
  return ok_status();
}

// Each character that `is` accepts is a match.
template <class Is>
PreTokenizerStep split_at(Behavior behavior, Is is) {
  return [behavior, is](Pieces& pieces) {
    return split_pieces(pieces, behavior, false,
                        [&](std::string_view text, std::vector<Span>& matches) {
                          for (size_t at = 0; at < text.size();) {
                            const Character c = character_at(text, at);
                            const size_t end = at + static_cast<size_t>(c.length);
                            if (is(c.code_point)) matches.push_back({at, end});
                            at = end;
                          }
                          return ok_status();
                        });
  };
}

PreTokenizerStep in_turn(PreTokenizerStep first, PreTokenizerStep second) {
  return [first = std::move(first), second = std::move(second)](Pieces& pieces) {
    NIBBLE_RETURN_IF_ERROR(first(pieces));
    return second(pieces);
  };
}

Result<PreTokenizerStep> read_byte_level(JsonView json) {
  const bool prefix = json["add_prefix_space"].flag(true),
             regex = json["use_regex"].flag(true);
  return PreTokenizerStep([=](Pieces& pieces) {
    std::vector<Piece> out;
    size_t bytes = 0;
    std::vector<std::string_view> words;
    for (Piece& piece : pieces.list) {
      if (prefix && piece.text[0] != ' ')
        piece.text = pieces.changed.emplace_back(1, ' ').append(piece.text);
      bytes += piece.text.size();
    }
    // One string holds all pieces; it never grows beyond this, so views of it stay good.
    std::string& spelled = pieces.changed.emplace_back();
    spelled.reserve(2 * bytes);
    for (const Piece& piece : pieces.list) {
      words.clear();
      if (regex)
        split_text(piece.text, SplitPattern::gpt2, words);
      else
        words.push_back(piece.text);
      bool first = piece.first;
      for (std::string_view word : words) {
        const size_t begin = spelled.size();
        for (char byte : word) spelled += byte_alphabet()[static_cast<uint8_t>(byte)];
        out.push_back({std::string_view(spelled).substr(begin), first});
        first = false;
      }
    }
    pieces.list.swap(out);
    return ok_status();
  });
}

Result<PreTokenizerStep> read_split(JsonView json) {
  NIBBLE_ASSIGN_OR_RETURN(Pattern pattern, read_pattern(json["pattern"], kWhere));
  NIBBLE_ASSIGN_OR_RETURN(const Behavior behavior,
                          read_behavior(json["behavior"], Behavior::isolated));
  return PreTokenizerStep([pattern = std::move(pattern), behavior,
                           invert = json["invert"].flag()](Pieces& pieces) {
    return split_pieces(pieces, behavior, invert,
                        [&](std::string_view text, std::vector<Span>& matches) {
                          return pattern.find_all(text, matches);
                        });
  });
}

Result<PreTokenizerStep> read_bert(JsonView) {
  return in_turn(split_at(Behavior::removed, is_space),
                 split_at(Behavior::isolated, is_punctuation));
}

Result<PreTokenizerStep> read_digits(JsonView json) {
  return split_at(
      json["individual_digits"].flag() ? Behavior::isolated : Behavior::contiguous,
      is_number);
}

Result<PreTokenizerStep> read_punctuation(JsonView json) {
  NIBBLE_ASSIGN_OR_RETURN(const Behavior behavior,
                          read_behavior(json["behavior"], Behavior::isolated));
  return split_at(behavior, is_punctuation);
}

Result<PreTokenizerStep> read_whitespace_split(JsonView) {
  return split_at(Behavior::removed, is_space);
}

// \w+|[^\w\s]+ are kept, the rest (spaces) is removed.
Result<PreTokenizerStep> read_whitespace(JsonView) {
  const auto kind = [](int32_t c) { return is_word(c) ? 1 : is_space(c) ? 0 : 2; };
  return PreTokenizerStep([kind](Pieces& pieces) {
    return split_pieces(pieces, Behavior::removed, true,
                        [&](std::string_view text, std::vector<Span>& matches) {
                          int open = 0;  // the kind of the last match, 0: ended
                          for (size_t at = 0; at < text.size();) {
                            const Character c = character_at(text, at);
                            const size_t end = at + static_cast<size_t>(c.length);
                            const int now = kind(c.code_point);
                            if (now != 0 && now == open)
                              matches.back().end = end;
                            else if (now != 0)
                              matches.push_back({at, end});
                            open = now;
                            at = end;
                          }
                          return ok_status();
                        });
  });
}

Result<PreTokenizerStep> read_char_delimiter(JsonView json) {
  const std::string_view text = json["delimiter"].text();
  if (count_characters(text) != 1)
    return damaged_json(kWhere,
                        "CharDelimiterSplit with a `delimiter` of one character "
                        "was required; found ",
                        json.dump());
  return split_at(Behavior::removed, [delimiter = character_at(text, 0).code_point](
                                         int32_t c) { return c == delimiter; });
}

Result<PreTokenizerStep> read_fixed_length(JsonView json) {
  const JsonView length = json["length"];
  if (length.exists() && length.id() < 1)
    return damaged_json(kWhere,
                        "FixedLength with a `length` of 1 or more was required; "
                        "found ",
                        json.dump());
  const int32_t characters = length.exists() ? length.id() : 5;
  return PreTokenizerStep([characters](Pieces& pieces) {
    return split_pieces(pieces, Behavior::isolated, false,
                        [&](std::string_view text, std::vector<Span>& matches) {
                          for (size_t at = 0; at < text.size();) {
                            size_t end = at;
                            for (int32_t n = 0; n < characters && end < text.size(); ++n)
                              end += static_cast<size_t>(character_at(text, end).length);
                            matches.push_back({at, end});
                            at = end;
                          }
                          return ok_status();
                        });
  });
}

Result<PreTokenizerStep> read_metaspace(JsonView json) {
  enum class Prepend : uint8_t { always, first, never };
  const JsonView scheme = json["prepend_scheme"];
  Prepend prepend = Prepend::always;
  if (scheme.text() == "first")
    prepend = Prepend::first;
  else if (scheme.text() == "never" || json["add_prefix_space"].flag(true) == false)
    prepend = Prepend::never;  // add_prefix_space: as files of before 2024 say it
  else if (scheme.exists() && scheme.text() != "always")
    return unknown_json(kWhere,
                        "Metaspace with prepend_scheme always, first or never "
                        "was required; found ",
                        scheme.dump());
  const std::string replacement(json["replacement"].exists() ? json["replacement"].text()
                                                             : "\xe2\x96\x81");
  if (count_characters(replacement) != 1)
    return damaged_json(kWhere,
                        "Metaspace with a `replacement` of one character was "
                        "required; found ",
                        json["replacement"].dump());
  const bool split = json["split"].flag(true);
  return PreTokenizerStep([=](Pieces& pieces) {
    for (Piece& piece : pieces.list) {
      std::string text;
      for (char byte : piece.text)
        if (byte == ' ')
          text += replacement;
        else
          text += byte;
      if ((prepend == Prepend::always || (prepend == Prepend::first && piece.first)) &&
          text.compare(0, replacement.size(), replacement) != 0)
        text = replacement + text;
      piece.text = pieces.changed.emplace_back(std::move(text));
    }
    if (!split) return ok_status();
    const Pattern at = Pattern::literal(replacement);
    return split_pieces(pieces, Behavior::merged_with_next, false,
                        [&](std::string_view text, std::vector<Span>& matches) {
                          return at.find_all(text, matches);
                        });
  });
}

constexpr SectionRow<PreTokenizerStep> kPreTokenizers[] = {
    {"BertPreTokenizer", read_bert},
    {"ByteLevel", read_byte_level},
    {"CharDelimiterSplit", read_char_delimiter},
    {"Digits", read_digits},
    {"FixedLength", read_fixed_length},
    {"Metaspace", read_metaspace},
    {"Punctuation", read_punctuation},
    {"Split", read_split},
    {"Whitespace", read_whitespace},
    {"WhitespaceSplit", read_whitespace_split}};

}  // namespace

Result<std::vector<PreTokenizerStep>> read_pre_tokenizer(JsonView component) {
  return read_section<PreTokenizerStep>(component, kWhere, "pretokenizers",
                                        kPreTokenizers);
}

}  // namespace nibble
