#include "export/gguf/metadata_writer.h"

#include <cstring>

namespace nibble {
namespace {

constexpr uint32_t kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8,
                   kArray = 9;

template <class T>
void put(std::string& out, T value) {
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}
void put_text(std::string& out, std::string_view text) {
  put<uint64_t>(out, text.size());
  out += text;
}
void put_key(std::string& out, std::string_view key, uint32_t type) {
  put_text(out, key);
  put(out, type);
}
void put_array(std::string& out, std::string_view key, uint32_t type, uint64_t count) {
  put_key(out, key, kArray);
  put(out, type);
  put(out, count);
}

}  // namespace

void GgufMetadataWriter::text(std::string_view key, std::string_view value) {
  put_key(keys_, key, kString);
  put_text(keys_, value);
  ++count_;
}
void GgufMetadataWriter::number(std::string_view key, uint32_t value) {
  put_key(keys_, key, kUint32);
  put(keys_, value);
  ++count_;
}
void GgufMetadataWriter::real(std::string_view key, float value) {
  put_key(keys_, key, kFloat32);
  put(keys_, value);
  ++count_;
}
void GgufMetadataWriter::flag(std::string_view key, bool value) {
  put_key(keys_, key, kBool);
  put<uint8_t>(keys_, value ? 1 : 0);
  ++count_;
}
void GgufMetadataWriter::texts(std::string_view key,
                               std::span<const std::string> values) {
  put_array(keys_, key, kString, values.size());
  for (const std::string& value : values) put_text(keys_, value);
  ++count_;
}
void GgufMetadataWriter::reals(std::string_view key, std::span<const float> values) {
  put_array(keys_, key, kFloat32, values.size());
  for (const float value : values) put(keys_, value);
  ++count_;
}
void GgufMetadataWriter::integers(std::string_view key, std::span<const int32_t> values) {
  put_array(keys_, key, kInt32, values.size());
  for (const int32_t value : values) put(keys_, value);
  ++count_;
}

std::string GgufMetadataWriter::finish(const std::vector<GgufInfo>& tensors) const {
  std::string out = "GGUF";
  put<uint32_t>(out, 3);
  put<uint64_t>(out, tensors.size());
  put(out, count_);
  out += keys_;
  uint64_t offset = 0;
  for (const GgufInfo& tensor : tensors) {
    put_text(out, tensor.name);
    put(out, static_cast<uint32_t>(tensor.dims.size()));
    for (const int64_t size : tensor.dims) put(out, static_cast<uint64_t>(size));
    put(out, tensor.type);
    put(out, offset);
    offset += gguf_padded(tensor.bytes);
  }
  out.resize(gguf_padded(out.size()), '\0');
  return out;
}

}  // namespace nibble
