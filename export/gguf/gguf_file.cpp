#include "export/gguf/gguf_file.h"

#include <cstring>
#include <set>

#include "kernels/base/file.h"

namespace nibble {
namespace {

constexpr uint64_t kSmallestInfo = 8 + 4 + 4 + 8;  // of a tensor without name and dims
constexpr uint32_t kMostDims = 4;
constexpr uint64_t kLongestName = 63;                // ggml keeps 64 with the zero
constexpr uint64_t kMostValues = uint64_t{1} << 40;  // products of sizes stay in 64 bits

template <class... Parts>
Status damaged(const Parts&... parts) {
  return error(StatusCode::data_loss, "[gguf] ", parts..., "; the file is damaged");
}

class Infos {
 public:
  Infos(std::string_view file, size_t at) : file_(file), at_(at) {}
  size_t at() const { return at_; }
  size_t left() const { return file_.size() - at_; }

  template <class T>
  bool number(T& value) {
    if (left() < sizeof value) return false;
    std::memcpy(&value, file_.data() + at_, sizeof value);
    at_ += sizeof value;
    return true;
  }
  bool text(std::string& value) {
    uint64_t length = 0;
    if (!number(length) || length > left()) return false;
    value = file_.substr(at_, length);
    at_ += length;
    return true;
  }

 private:
  std::string_view file_;
  size_t at_;
};

struct Info {
  GgufTensor tensor;
  uint64_t offset = 0, size = 0;
};

Result<Info> read_info(Infos& infos, uint64_t index, uint64_t count) {
  Info info;
  GgufTensor& tensor = info.tensor;
  const size_t start = infos.at();
  const auto ends = [&] {
    return damaged("tensor ", index, " of ", count,
                   ": a name, sizes, a type and an offset were required at byte ", start,
                   "; the file ends");
  };
  uint32_t dims = 0, type = 0;
  if (!infos.text(tensor.name) || !infos.number(dims)) return ends();
  if (tensor.name.empty() || tensor.name.size() > kLongestName)
    return damaged("tensor ", index, " of ", count, ": a name of 1 to ", kLongestName,
                   " bytes was required; found ", tensor.name.size());
  if (dims > kMostDims)
    return damaged("tensor ", tensor.name, ": at most ", kMostDims,
                   " dimensions were required; found ", dims);
  uint64_t values = 1;
  for (uint32_t d = 0; d < dims; ++d) {
    uint64_t size = 0;
    if (!infos.number(size)) return ends();
    if (size < 1 || size > kMostValues / values)
      return damaged("tensor ", tensor.name, ": sizes whose product is 1 to 2^40 were ",
                     "required; found ", size, " as number ", d);
    values *= size;
    tensor.dims.push_back(static_cast<int64_t>(size));
  }
  if (!infos.number(type) || !infos.number(info.offset)) return ends();
  tensor.type = ggml_type_of_id(type);
  if (tensor.type == nullptr) {
    std::string known;
    for (const GgmlType& row : all_ggml_types())
      known += cat(known.empty() ? "" : " ", row.name);
    return error(StatusCode::unsupported, "[gguf] tensor ", tensor.name, ": a type of ",
                 known, " was required; found number ", type,
                 "; convert the file to one of these with the tool that made it");
  }
  if (tensor.cols() % tensor.type->block != 0)
    return damaged("tensor ", tensor.name, ": rows of whole ", tensor.type->name,
                   " blocks of ", tensor.type->block, " were required; found ",
                   tensor.cols());
  info.size = values / static_cast<uint64_t>(tensor.type->block) *
              static_cast<uint64_t>(tensor.type->bytes);
  return info;
}

Result<uint64_t> alignment_of(const GgufMetadata& metadata) {
  constexpr uint64_t kDefault = 32;
  const auto found = metadata.values.find("general.alignment");
  if (found == metadata.values.end()) return kDefault;
  const auto* value = std::get_if<uint64_t>(&found->second);
  const uint64_t alignment = value == nullptr ? 0 : *value;
  if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > 1u << 30)
    return damaged("key general.alignment: a power of two was required; found ",
                   alignment);
  return alignment;
}

}  // namespace

int64_t GgufTensor::rows() const {
  int64_t rows = 1;
  for (size_t d = 1; d < dims.size(); ++d) rows *= dims[d];
  return rows;
}

const GgufTensor* GgufFile::find(std::string_view name) const {
  for (const GgufTensor& tensor : tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

Result<GgufFile> parse_gguf(Bytes bytes) {
  GgufFile file;
  file.bytes = std::move(bytes);
  NIBBLE_ASSIGN_OR_RETURN(file.metadata, read_gguf_metadata(file.bytes.text()));
  const auto split = file.metadata.values.find("split.count");
  if (split != file.metadata.values.end()) {
    const auto* parts = std::get_if<uint64_t>(&split->second);
    if (parts == nullptr || *parts > 1)
      return error(
          StatusCode::unsupported,
          "[gguf] key split.count: a whole file was required; found one part of ",
          parts == nullptr ? 0 : *parts, "; join them first (llama-gguf-split --merge)");
  }
  NIBBLE_ASSIGN_OR_RETURN(const uint64_t alignment, alignment_of(file.metadata));
  Infos infos(file.bytes.text(), file.metadata.end);
  const uint64_t count = file.metadata.tensors;
  if (count > infos.left() / kSmallestInfo)
    return damaged("header: ", count, " tensors need ", kSmallestInfo,
                   " bytes each at least; found ", infos.left(), " bytes after the keys");
  std::vector<Info> found;
  std::set<std::string> names;
  for (uint64_t i = 0; i < count; ++i) {
    NIBBLE_ASSIGN_OR_RETURN(Info info, read_info(infos, i, count));
    if (!names.insert(info.tensor.name).second)
      return damaged("tensor ", info.tensor.name,
                     ": each name once was required; found it twice");
    found.push_back(std::move(info));
  }
  const auto padded = [&](uint64_t n) {
    return (n + alignment - 1) / alignment * alignment;
  };
  const uint64_t start = padded(infos.at()), size = file.bytes.size();
  uint64_t offset = 0;
  for (Info& info : found) {
    if (info.offset != offset)
      return damaged("tensor ", info.tensor.name, ": offset ", offset,
                     ", the sum of the sizes before it, was required; found ",
                     info.offset);
    if (start > size || offset > size - start || info.size > size - start - offset)
      return damaged("tensor ", info.tensor.name, ": bytes ", start + offset, " to ",
                     start + offset + info.size, " were required; the file has ", size);
    info.tensor.bytes = file.bytes.slice(static_cast<size_t>(start + offset),
                                         static_cast<size_t>(info.size));
    offset += padded(info.size);
    file.tensors.push_back(std::move(info.tensor));
  }
  return file;
}

Result<GgufFile> open_gguf(const std::filesystem::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(Bytes bytes, map_file(path));
  Result<GgufFile> file = parse_gguf(std::move(bytes));
  if (file.ok()) return file;
  std::string message = file.status().message();  // which file it is
  message.insert(message.find("] ") + 2, path.filename().string() + ": ");
  return Status(file.status().code(), std::move(message));
}

}  // namespace nibble
