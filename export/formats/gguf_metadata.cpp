#include "export/formats/gguf_metadata.h"

#include <cstring>
#include <optional>

namespace nibble {
namespace {

enum class Type : uint32_t {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  string,
  array,
  u64,
  i64,
  f64
};

template <class... Parts>
Status damaged(const Parts&... parts) {
  return error(StatusCode::data_loss, "[gguf] ", parts..., "; the file is damaged");
}

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  size_t at() const { return at_; }
  size_t left() const { return bytes_.size() - at_; }

  template <class T>
  std::optional<T> number() {
    T value;
    if (left() < sizeof value) return {};
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  std::optional<std::string_view> string() {
    const auto length = number<uint64_t>();
    if (!length || *length > left()) return {};
    const std::string_view text = bytes_.substr(at_, *length);
    at_ += *length;
    return text;
  }

  // One value of a type that is not an array, into a vector of its kind.
  std::optional<GgufValue> value(Type type) {
    switch (type) {
      case Type::u8:
        return widened<uint8_t, uint64_t>();
      case Type::u16:
        return widened<uint16_t, uint64_t>();
      case Type::u32:
        return widened<uint32_t, uint64_t>();
      case Type::u64:
        return widened<uint64_t, uint64_t>();
      case Type::i8:
        return widened<int8_t, int64_t>();
      case Type::i16:
        return widened<int16_t, int64_t>();
      case Type::i32:
        return widened<int32_t, int64_t>();
      case Type::i64:
        return widened<int64_t, int64_t>();
      case Type::f32:
        return widened<float, double>();
      case Type::f64:
        return widened<double, double>();
      case Type::boolean:
        if (const auto byte = number<uint8_t>()) return GgufValue(*byte != 0);
        return {};
      case Type::string:
        if (const auto text = string()) return GgufValue(*text);
        return {};
      default:
        return {};
    }
  }

  std::optional<GgufValue> array() {
    const auto type = number<uint32_t>();
    const auto count = number<uint64_t>();
    // A value has a byte at least, so that a count beyond them drives no allocation.
    if (!type || !count || *count > left()) return {};
    switch (static_cast<Type>(*type)) {
      case Type::boolean:
        return elements<bool>(static_cast<Type>(*type), *count);
      case Type::string:
        return elements<std::string_view>(static_cast<Type>(*type), *count);
      case Type::f32:
      case Type::f64:
        return elements<double>(static_cast<Type>(*type), *count);
      case Type::i8:
      case Type::i16:
      case Type::i32:
      case Type::i64:
        return elements<int64_t>(static_cast<Type>(*type), *count);
      case Type::u8:
      case Type::u16:
      case Type::u32:
      case Type::u64:
        return elements<uint64_t>(static_cast<Type>(*type), *count);
      default:
        return {};
    }
  }

 private:
  template <class Stored, class Kept>
  std::optional<GgufValue> widened() {
    const auto found = number<Stored>();
    if (!found) return {};
    return GgufValue(static_cast<Kept>(*found));
  }
  template <class T>
  std::optional<GgufValue> elements(Type type, uint64_t count) {
    std::vector<T> list;
    for (uint64_t i = 0; i < count; ++i) {
      const auto element = value(type);
      if (!element) return {};
      list.push_back(std::get<T>(*element));
    }
    return GgufValue(std::move(list));
  }

  std::string_view bytes_;
  size_t at_ = 0;
};

template <class T>
const T* find(const GgufMetadata& metadata, std::string_view key) {
  const auto found = metadata.values.find(key);
  return found == metadata.values.end() ? nullptr : std::get_if<T>(&found->second);
}

}  // namespace

Result<GgufMetadata> read_gguf_metadata(std::string_view file) {
  Reader reader(file);
  GgufMetadata out;
  const auto magic = reader.number<uint32_t>(), version = reader.number<uint32_t>();
  if (!magic || *magic != 0x46554747 || !version || *version < 2 || *version > 3)  // GGUF
    return damaged("header: \"GGUF\" and version 2 or 3 were required; found ",
                   file.size(), " bytes that begin otherwise");
  const auto tensors = reader.number<uint64_t>(), keys = reader.number<uint64_t>();
  if (!tensors || !keys)
    return damaged("header: 24 bytes were required; found ", file.size());
  out.version = *version;
  out.tensors = *tensors;
  for (uint64_t i = 0; i < *keys; ++i) {
    const size_t start = reader.at();
    const auto key = reader.string();
    const auto type = reader.number<uint32_t>();
    if (!key || !type)
      return damaged("key ", i, " of ", *keys,
                     ": a name and a type were required at byte ", start,
                     "; the file of ", file.size(), " bytes ends");
    auto value = static_cast<Type>(*type) == Type::array
                     ? reader.array()
                     : reader.value(static_cast<Type>(*type));
    if (!value)
      return damaged("key ", *key, ": a value of a known type within the file of ",
                     file.size(), " bytes was required at byte ", start, "; found type ",
                     *type);
    if (!out.values.emplace(*key, std::move(*value)).second)
      return damaged("key ", *key, ": each key once was required; found it twice");
  }
  out.end = reader.at();
  return out;
}

Result<GgufVocabulary> gguf_vocabulary(const GgufMetadata& metadata) {
  GgufVocabulary out;
  const auto* model = find<std::string_view>(metadata, "tokenizer.ggml.model");
  const auto* tokens =
      find<std::vector<std::string_view>>(metadata, "tokenizer.ggml.tokens");
  if (!model || !tokens)
    return error(StatusCode::not_found,
                 "[gguf] tokenizer.ggml: model and tokens were required; this file has "
                 "none; give a tokenizer with --tokenizer FILE");
  out.model = *model;
  out.tokens.assign(tokens->begin(), tokens->end());
  if (const auto* pre = find<std::string_view>(metadata, "tokenizer.ggml.pre"))
    out.pre = *pre;
  if (const auto* scores = find<std::vector<double>>(metadata, "tokenizer.ggml.scores"))
    out.scores.assign(scores->begin(), scores->end());
  if (const auto* types =
          find<std::vector<int64_t>>(metadata, "tokenizer.ggml.token_type"))
    for (int64_t type : *types) out.types.push_back(static_cast<int32_t>(type));
  if (const auto* merges =
          find<std::vector<std::string_view>>(metadata, "tokenizer.ggml.merges"))
    out.merges.assign(merges->begin(), merges->end());
  const auto id = [&](const char* key, int32_t otherwise) {
    const auto* value = find<uint64_t>(metadata, key);
    return value && *value <= INT32_MAX ? static_cast<int32_t>(*value) : otherwise;
  };
  const bool llama = out.model == "llama";  // whose ids have been these from the start
  out.bos = id("tokenizer.ggml.bos_token_id", llama ? 1 : -1);
  out.eos = id("tokenizer.ggml.eos_token_id", llama ? 2 : -1);
  out.eot = id("tokenizer.ggml.eot_token_id", -1);
  out.unknown = id("tokenizer.ggml.unknown_token_id", llama ? 0 : -1);
  const auto flag = [&](const char* key, bool otherwise) {
    const auto* value = find<bool>(metadata, key);
    return value ? *value : otherwise;
  };
  out.add_bos = flag("tokenizer.ggml.add_bos_token", llama);
  out.add_eos = flag("tokenizer.ggml.add_eos_token", false);
  out.add_space_prefix = flag("tokenizer.ggml.add_space_prefix", true);
  return out;
}

}  // namespace nibble
