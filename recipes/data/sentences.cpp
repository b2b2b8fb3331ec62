#include "recipes/data/sentences.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/file.h"
#include "kernels/base/sha256.h"

namespace nibble {
namespace {

constexpr std::string_view kBlanks = " \t\r\v\f\n";

std::string trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(kBlanks) + 1 - begin));
}

int64_t characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xc0) != 0x80; });
}

// Where the closing mark that begins at `at` ends, or `at`: quotes and brackets, straight
// and curly (three bytes each in UTF-8).
size_t after_closing(std::string_view text, size_t at) {
  if (at < text.size() && std::strchr("\"')]", text[at]) != nullptr) return at + 1;
  for (const std::string_view mark : {"\u201d", "\u2019"}) {
    if (text.substr(at, mark.size()) == mark) return at + mark.size();
  }
  return at;
}

}  // namespace

std::vector<std::string> split_sentences(const std::string& line) {
  std::vector<std::string> sentences;
  const std::string_view text = line;
  const auto take = [&](size_t begin, size_t end) {
    std::string sentence = trimmed(text.substr(begin, end - begin));
    if (!sentence.empty()) sentences.push_back(std::move(sentence));
  };
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    if (std::strchr(".!?", text[at]) == nullptr || text[at] == '\0') {
      ++at;
      continue;
    }
    while (at < text.size() && text[at] != '\0' && std::strchr(".!?", text[at])) ++at;
    for (size_t next; (next = after_closing(text, at)) != at;) at = next;
    if (at < text.size() && kBlanks.find(text[at]) != std::string_view::npos) {
      take(begin, at);
      begin = at;
    }
  }
  take(begin, text.size());
  return sentences;
}

Result<std::vector<std::string>> read_sentences(const std::filesystem::path& path,
                                                const TextOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> lines, read_text_lines(path));
  std::vector<std::string> kept;
  for (const std::string& line : lines) {
    const std::vector<std::string> parts =
        options.per_line ? std::vector<std::string>{line} : split_sentences(line);
    for (const std::string& part : parts) {
      if (part.empty() || characters(part) < options.min_chars) continue;
      kept.push_back(part);
      if (options.limit > 0 && static_cast<int64_t>(kept.size()) == options.limit) {
        return kept;
      }
    }
  }
  if (!kept.empty()) return kept;
  return error(StatusCode::invalid_argument, "[text] ", path.string(),
               ": at least one sentence was required; found none",
               options.min_chars > 0 ? cat(" of ", options.min_chars, " characters") : "",
               "; give more text");
}

Result<TextData> load_sentences(const std::filesystem::path& path,
                                const Tokenizer* tokenizer, int64_t vocabulary,
                                const TextOptions& options) {
  if (path.extension() == ".safetensors") {
    return load_text(path, tokenizer, vocabulary, options);
  }
  if (tokenizer == nullptr || options.length < 2) {
    return error(StatusCode::invalid_argument, "[text] ", path.string(),
                 ": a tokenizer and sequences of at least 2 tokens were required; found ",
                 tokenizer == nullptr ? "no tokenizer" : cat(options.length, " tokens"));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> sentences,
                          read_sentences(path, options));
  TextData data;
  int64_t tokens = 0;
  for (const std::string& sentence : sentences) {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer->encode(sentence));
    const auto length = static_cast<size_t>(options.length);
    if (ids.size() > length) {
      ids[length - 1] = ids.back();
      ids.resize(length);
    }
    if (ids.empty()) continue;
    tokens += static_cast<int64_t>(ids.size());
    data.sequences.push_back(std::move(ids));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(path));
  data.description = cat(path.filename().string(), ", the first ", data.sequences.size(),
                         options.per_line ? " lines" : " sentences",
                         options.min_chars > 0
                             ? cat(" of at least ", options.min_chars, " characters")
                             : "",
                         ", ", tokens, " tokens, sha256 ", sha256_hex(bytes.text()));
  return data;
}

}  // namespace nibble
