#include "kernels/tokenizer/decoders.h"

#include "kernels/tokenizer/byte_alphabet.h"
#include "kernels/tokenizer/pattern.h"
#include "kernels/tokenizer/sections.h"
#include "kernels/tokenizer/unicode.h"

namespace nibble {
namespace {

constexpr const char* kWhere = "decoder";
using Tokens = std::vector<std::string>;

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty()) return;
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

std::string joined(const Tokens& tokens) {
  std::string out;
  for (const std::string& token : tokens) out += token;
  return out;
}

Result<DecoderStep> read_byte_level(JsonView) {
  return DecoderStep([](Tokens& tokens) {
    std::string bytes;
    for (const std::string& token : tokens)  // added tokens may lie outside the alphabet
      if (const auto unspelled = unspell_bytes(token))
        bytes += *unspelled;
      else
        bytes += token;
    tokens = {replace_invalid_utf8(bytes)};
  });
}

// English as it is written: no spaces before marks and contractions.
void clean_up(std::string& text) {
  constexpr std::pair<std::string_view, std::string_view> kRules[] = {
      {" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
      {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
      {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kRules) replace_all(text, from, to);
}

Result<DecoderStep> read_word_piece(JsonView json) {
  const std::string prefix(json["prefix"].exists() ? json["prefix"].text() : "##");
  const bool clean = json["cleanup"].flag(true);
  return DecoderStep([=](Tokens& tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0) {
        if (tokens[i].compare(0, prefix.size(), prefix) == 0)
          tokens[i].erase(0, prefix.size());
        else
          tokens[i].insert(tokens[i].begin(), ' ');
      }
      if (clean) clean_up(tokens[i]);
    }
  });
}

Result<DecoderStep> read_metaspace(JsonView json) {
  const std::string replacement(json["replacement"].exists() ? json["replacement"].text()
                                                             : "\xe2\x96\x81");
  const bool prepended =
      json["prepend_scheme"].text() != "never" &&
      (json["prepend_scheme"].exists() || json["add_prefix_space"].flag(true));
  return DecoderStep([=](Tokens& tokens) {
    for (size_t i = 0; i < tokens.size(); ++i)
      replace_all(tokens[i], replacement, i == 0 && prepended ? "" : " ");
  });
}

Result<DecoderStep> read_byte_fallback(JsonView) {
  return DecoderStep([](Tokens& tokens) {
    Tokens out;
    std::string bytes;
    const auto flush = [&] {
      if (!bytes.empty()) out.push_back(text_of_byte_tokens(bytes));
      bytes.clear();
    };
    for (std::string& token : tokens) {
      if (const int byte = byte_of_token(token); byte >= 0) {
        bytes += static_cast<char>(byte);
      } else {
        flush();
        out.push_back(std::move(token));
      }
    }
    flush();
    tokens = std::move(out);
  });
}

Result<DecoderStep> read_fuse(JsonView) {
  return DecoderStep([](Tokens& tokens) { tokens = {joined(tokens)}; });
}

Result<DecoderStep> read_strip(JsonView json) {
  const std::string content(json["content"].text());
  const int32_t start = json["start"].id(), stop = json["stop"].id();
  if (count_characters(content) != 1 || start < 0 || stop < 0)
    return damaged_json(kWhere,
                        "Strip with a `content` of one character, `start` and "
                        "`stop` was required; found ",
                        json.dump());
  return DecoderStep([=](Tokens& tokens) {
    for (std::string& token : tokens) {
      size_t begin = 0, end = token.size();
      for (int32_t n = 0; n < start && end - begin >= content.size() &&
                          token.compare(begin, content.size(), content) == 0;
           ++n)
        begin += content.size();
      for (int32_t n = 0;
           n < stop && end - begin >= content.size() &&
           token.compare(end - content.size(), content.size(), content) == 0;
           ++n)
        end -= content.size();
      token = token.substr(begin, end - begin);
    }
  });
}

Result<DecoderStep> read_replace(JsonView json) {
  NIBBLE_ASSIGN_OR_RETURN(Pattern pattern, read_pattern(json["pattern"], kWhere));
  if (!json["content"].is_string())
    return damaged_json(kWhere, "Replace with a string `content` was required; found ",
                        json.dump());
  return DecoderStep([pattern = std::move(pattern),
                      content = std::string(json["content"].text())](Tokens& tokens) {
    for (std::string& token : tokens)  // a token that cannot be searched stays as it is
      if (!pattern.replace_all(token, content).ok()) continue;
  });
}

Result<DecoderStep> read_bpe(JsonView json) {
  const std::string suffix(json["suffix"].exists() ? json["suffix"].text() : "</w>");
  return DecoderStep([=](Tokens& tokens) {
    for (size_t i = 0; i < tokens.size(); ++i)
      replace_all(tokens[i], suffix, i + 1 == tokens.size() ? "" : " ");
  });
}

constexpr SectionRow<DecoderStep> kDecoders[] = {
    {"BPEDecoder", read_bpe},       {"ByteFallback", read_byte_fallback},
    {"ByteLevel", read_byte_level}, {"Fuse", read_fuse},
    {"Metaspace", read_metaspace},  {"Replace", read_replace},
    {"Strip", read_strip},          {"WordPiece", read_word_piece}};

}  // namespace

std::string Decoder::decode(std::vector<std::string> tokens) const {
  if (joined_by_spaces)
    for (size_t i = 1; i < tokens.size(); ++i) tokens[i].insert(tokens[i].begin(), ' ');
  for (const DecoderStep& step : steps) step(tokens);
  return joined(tokens);
}

Result<Decoder> read_decoder(JsonView component) {
  Decoder decoder;
  decoder.joined_by_spaces = !component.exists();
  NIBBLE_ASSIGN_OR_RETURN(
      decoder.steps, read_section<DecoderStep>(component, kWhere, "decoders", kDecoders));
  return decoder;
}

std::string text_of_byte_tokens(const std::string& bytes) {
  if (first_invalid_utf8(bytes) < 0) return bytes;
  std::string out;
  for (size_t i = 0; i < bytes.size(); ++i) out += "\xef\xbf\xbd";  // U+FFFD
  return out;
}

int byte_of_token(std::string_view token) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  const int high = digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace nibble
