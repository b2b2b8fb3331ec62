#include "recipes/data/text.h"

#include <algorithm>

#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"
#include "kernels/tokenizer/unicode.h"

namespace nibble {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;

Result<std::string> read_utf8(const std::filesystem::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(std::string text, read_text_file(path));
  const int64_t invalid = first_invalid_utf8(text);
  if (invalid >= 0)
    return error(StatusCode::data_loss, "[text] ", path.string(),
                 ": UTF-8 text was required; byte ", invalid,
                 " is not part of UTF-8; convert the file, or give token ids in a "
                 "safetensors file");
  return text;
}

// Without the blanks at either end, which texts carry by accident ("\r" among them).
std::string_view trimmed(std::string_view line) {
  constexpr std::string_view kBlanks = " \t\r\v\f";
  const size_t begin = line.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return line.substr(begin, line.find_last_not_of(kBlanks) + 1 - begin);
}

std::vector<std::string> split_lines(std::string_view text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.emplace_back(trimmed(text.substr(at, end - at)));
    at = end + 1;
  }
  return lines;
}

int64_t characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xc0) != 0x80; });
}

bool full(const Sequences& sequences, const TextOptions& options) {
  return options.limit > 0 && static_cast<int64_t>(sequences.size()) >= options.limit;
}

// Windows of ids, `bos` (or -1) before each, and where each begins to count.
void add_windows(const std::vector<int32_t>& ids, int32_t bos, const TextOptions& options,
                 Sequences& sequences, std::vector<int64_t>& counted_from) {
  const size_t before = bos >= 0 ? 1 : 0;
  const size_t room = static_cast<size_t>(options.length) - before;
  const size_t stride = options.stride > 0 ? static_cast<size_t>(options.stride) : room;
  for (size_t at = 0; at < ids.size() && !full(sequences, options); at += stride) {
    std::vector<int32_t> window;
    window.reserve(room + before);
    if (before) window.push_back(bos);
    const size_t end = std::min(ids.size(), at + room);
    window.insert(window.end(), ids.begin() + static_cast<std::ptrdiff_t>(at),
                  ids.begin() + static_cast<std::ptrdiff_t>(end));
    // Without BOS nothing predicts a window's first token.
    const size_t shared = at == 0 ? 0 : room - stride;
    const size_t from = std::max<size_t>(1, before + shared);
    if (window.size() > from) {
      sequences.push_back(std::move(window));
      counted_from.push_back(static_cast<int64_t>(from));
    }
    if (end == ids.size()) break;  // later windows would only repeat
  }
}

Result<Sequences> sequences_of_ids(const std::filesystem::path& path, int64_t vocabulary,
                                   const TextOptions& options,
                                   std::vector<int64_t>& counted_from) {
  NIBBLE_ASSIGN_OR_RETURN(const SafetensorsFile file, read_safetensors(path));
  const auto found = file.tensors.find("input_ids");
  if (found == file.tensors.end() || found->second.shape.size() != 2)
    return error(
        StatusCode::data_loss, "[text] ", path.string(),
        ": input_ids [sequences, length] was required; found ",
        found == file.tensors.end() ? "no such tensor" : shape_text(found->second.shape),
        "; write the token ids under that name");
  const Tensor& tensor = found->second;
  if (tensor.dtype != DType::i32 && tensor.dtype != DType::i64)
    return error(StatusCode::data_loss, "[text] ", path.string(),
                 " input_ids: I32 was required; found ", dtype_name(tensor.dtype),
                 "; write the token ids as int32");
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, to_int32(tensor));
  Sequences sequences;
  const int64_t length = tensor.shape[1];
  for (int64_t row = 0; row < tensor.shape[0] && !full(sequences, options); ++row) {
    std::vector<int32_t> sequence;
    bool padded = false;
    for (int64_t column = 0; column < length; ++column) {
      const int32_t id = ids[static_cast<size_t>(row * length + column)];
      if (id == -1) {
        padded = true;
        continue;
      }
      if (padded)
        return error(StatusCode::data_loss, "[text] ", path.string(), " input_ids row ",
                     row, ": padding (-1) only at the end was required; found id ", id,
                     " in column ", column, " after it; move the padding to the end");
      if (id < 0 || id >= vocabulary)
        return error(StatusCode::out_of_range, "[text] ", path.string(),
                     " input_ids row ", row, " column ", column, ": an id below ",
                     vocabulary, " (the model's vocabulary) was required; found ", id,
                     "; these are another tokenizer's ids");
      if (column < options.length || options.stride > 0) sequence.push_back(id);
    }
    if (options.stride > 0) {
      add_windows(sequence, -1, options, sequences, counted_from);
    } else if (sequence.size() >= 2)
      sequences.push_back(std::move(sequence));
  }
  return sequences;
}

// Without the white space around it: what a line says does not depend on how it was
// saved.
std::string_view stripped(std::string_view line) {
  constexpr const char* kSpace = " \t\r\f\v";
  const size_t begin = line.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return line.substr(begin, line.find_last_not_of(kSpace) + 1 - begin);
}

Result<Sequences> sequences_of_lines(const std::string& text, const Tokenizer& tokenizer,
                                     const TextOptions& options) {
  const std::vector<int32_t> eos = tokenizer.eos();
  Sequences sequences;
  for (const std::string& raw : split_lines(text)) {
    if (full(sequences, options)) break;
    const std::string_view line = stripped(raw);
    if (characters(line) < options.min_chars) continue;
    NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer.encode(line));
    if (options.append_eos && !line.empty()) ids.push_back(eos.front());
    if (static_cast<int64_t>(ids.size()) > options.length)
      ids.resize(static_cast<size_t>(options.length));
    if (ids.size() >= 2) sequences.push_back(std::move(ids));
  }
  return sequences;
}

Result<Sequences> sequences_of_windows(const std::string& text,
                                       const Tokenizer& tokenizer,
                                       const TextOptions& options,
                                       std::vector<int64_t>& counted_from) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                          tokenizer.encode_without_special(text));
  Sequences sequences;
  add_windows(ids, tokenizer.bos(), options, sequences, counted_from);
  return sequences;
}

Status check_stride(const std::filesystem::path& path, const Tokenizer* tokenizer,
                    bool is_ids, const TextOptions& options) {
  if (options.stride == 0) return ok_status();
  const bool bos = !is_ids && tokenizer->bos() >= 0;
  const int64_t most = options.length - (bos ? 1 : 0);
  if (options.per_line)
    return error(StatusCode::invalid_argument, "[text] ", path.string(),
                 ": windows were required for a stride; found lines, each alone; leave "
                 "--stride or --per-line out");
  if (options.stride < 1 || options.stride > most)
    return error(StatusCode::invalid_argument, "[text] ", path.string(),
                 ": a stride of 1 to ", most, " tokens (the window",
                 bos ? " without BOS" : "", ") was required; found ", options.stride,
                 "; lower --stride or raise --sequence-length");
  return ok_status();
}

}  // namespace

Result<std::vector<std::string>> read_text_lines(const std::filesystem::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, read_utf8(path));
  return split_lines(text);
}

Result<TextData> load_text(const std::filesystem::path& path, const Tokenizer* tokenizer,
                           int64_t vocabulary, const TextOptions& options) {
  if (options.length < 2)
    return error(StatusCode::invalid_argument, "[text] ", path.string(),
                 ": sequences of at least 2 tokens were required; found a length of ",
                 options.length, "; raise --sequence-length");
  const bool is_ids = path.extension() == ".safetensors";
  if (!is_ids && !tokenizer)
    return error(
        StatusCode::invalid_argument, "[text] ", path.string(),
        ": a tokenizer was required for text; found none; give --tokenizer FILE");
  if (options.append_eos && (is_ids || !options.per_line || tokenizer->eos().empty()))
    return error(StatusCode::invalid_argument, "[text] ", path.string(),
                 ": lines of text and a tokenizer with an EOS token were required to end "
                 "each with "
                 "EOS; found ",
                 is_ids              ? "token ids"
                 : !options.per_line ? "windows"
                                     : "a tokenizer without one",
                 "; leave EOS out");
  NIBBLE_RETURN_IF_ERROR(check_stride(path, tokenizer, is_ids, options));
  Result<Sequences> sequences = Sequences();
  TextData data;
  if (is_ids) {
    sequences = sequences_of_ids(path, vocabulary, options, data.counted_from);
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, read_utf8(path));
    sequences = options.per_line
                    ? sequences_of_lines(text, *tokenizer, options)
                    : sequences_of_windows(text, *tokenizer, options, data.counted_from);
  }
  if (!sequences.ok()) return sequences.status();
  if (sequences->empty())
    return error(
        StatusCode::invalid_argument, "[text] ", path.string(),
        ": at least one sequence of 2 tokens was required; found none",
        options.min_chars > 0 ? cat(" of ", options.min_chars, " characters") : "",
        "; give more text");
  int64_t tokens = 0;
  for (const auto& sequence : *sequences) tokens += static_cast<int64_t>(sequence.size());
  NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(path));
  if (options.stride == 0) data.counted_from.clear();
  data.description =
      cat(path.filename().string(), ", ", sequences->size(), " sequences, ", tokens,
          " tokens, sha256 ", sha256_hex(bytes.text()));
  data.sequences = std::move(sequences).value();
  return data;
}

Status save_token_sequences(const std::filesystem::path& path,
                            const std::vector<std::vector<int32_t>>& sequences,
                            bool overwrite) {
  std::error_code ignored;
  if (!overwrite && std::filesystem::exists(path, ignored)) {
    return error(StatusCode::already_exists, "[text] ", path.string(),
                 ": a new file is required; found one; give another name");
  }
  size_t longest = 0;
  for (const std::vector<int32_t>& ids : sequences)
    longest = std::max(longest, ids.size());
  if (longest == 0) {
    return error(StatusCode::invalid_argument, "[text] ", path.string(),
                 ": at least one token is required; found none");
  }
  std::vector<int32_t> rows(sequences.size() * longest, -1);
  for (size_t i = 0; i < sequences.size(); ++i)
    std::copy(sequences[i].begin(), sequences[i].end(),
              rows.begin() + static_cast<std::ptrdiff_t>(i * longest));
  return write_safetensors_atomically(
      path,
      {{"input_ids", make_tensor({static_cast<int64_t>(sequences.size()),
                                  static_cast<int64_t>(longest)},
                                 rows)}},
      {{"made_by", "nibble"}});
}

}  // namespace nibble
