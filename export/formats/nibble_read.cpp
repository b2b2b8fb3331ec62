// Reads a nibble artifact directory independently of kernels/artifact and
// kernels/packing: manifest.json, safetensors headers and bit streams are parsed here
// once more, from kernels/artifact/FORMAT.md alone.
#include <cstring>
#include <fstream>
#include <set>

#include "export/formats/readers.h"
#include "kernels/base/float_types.h"
#include "kernels/base/json.h"
#include "kernels/base/parallel.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxElements = int64_t{1}
                                 << 40;  // far beyond any tensor; products stay small

template <class... Parts>
Status damaged(const std::string& where, const Parts&... parts) {
  return error(StatusCode::data_loss, "[nibble_read] ", where, ": ", parts...);
}

// A safetensors file: u64 header length N, N bytes of JSON, data.
struct Shard {
  std::filesystem::path path;
  Json header;
  int64_t data_begin = 0;
  int64_t size = 0;
};

struct Stored {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

class DirectoryReader {
 public:
  explicit DirectoryReader(std::filesystem::path directory)
      : directory_(std::move(directory)) {}

  Result<Decoded> read();

 private:
  Result<std::string> text(const std::string& name) const;
  Result<const Shard*> shard(const std::string& name);
  Result<Stored> stored(const std::string& name);
  Result<CodedLevel> level(const std::string& name, const ScaleLevel& level, int64_t rows,
                           int64_t cols, float shift);
  Result<CodedMatrix> weight(const std::string& name, const Json& json);

  std::filesystem::path directory_;
  Json manifest_;
  std::map<std::string, Shard> shards_;
  std::set<std::string> used_;  // stored tensors that belong to a packed weight
};

Result<std::string> DirectoryReader::text(const std::string& name) const {
  std::ifstream file(directory_ / name, std::ios::binary);
  if (!file) {
    return error(StatusCode::not_found, "[nibble_read] ", (directory_ / name).string(),
                 ": the file must exist");
  }
  return std::string(std::istreambuf_iterator<char>(file), {});
}

Result<const Shard*> DirectoryReader::shard(const std::string& name) {
  const auto known = shards_.find(name);
  if (known != shards_.end()) return &known->second;
  Shard shard;
  shard.path = directory_ / name;
  std::ifstream file(shard.path, std::ios::binary);
  std::error_code failed;
  shard.size = static_cast<int64_t>(std::filesystem::file_size(shard.path, failed));
  if (!file || failed) return damaged(name, "the shard must exist; cannot open it");
  uint64_t length = 0;
  file.read(reinterpret_cast<char*>(&length), sizeof(length));
  if (!file || length > static_cast<uint64_t>(shard.size) - sizeof(length)) {
    return damaged(name, "the header must lie in the file; found length ", length, " in ",
                   shard.size, " bytes");
  }
  std::string header(length, '\0');
  file.read(header.data(), static_cast<std::streamsize>(length));
  shard.header = parse_json_or_throw(header);
  shard.data_begin = static_cast<int64_t>(sizeof(length) + length);
  return &shards_.emplace(name, std::move(shard)).first->second;
}

Result<Stored> DirectoryReader::stored(const std::string& name) {
  const auto entry = manifest_.at("tensors").find(name);
  if (entry == manifest_.at("tensors").end()) {
    return damaged(name, "must be among the manifest's tensors; found none of this name");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Shard* shard,
                          this->shard(entry->at("file").get<std::string>()));
  const Json& tensor = shard->header.at(name);
  Stored result;
  result.dtype = tensor.at("dtype").get<std::string>();
  result.shape = tensor.at("shape").get<std::vector<int64_t>>();
  const auto offsets = tensor.at("data_offsets").get<std::vector<int64_t>>();
  const int64_t room = shard->size - shard->data_begin;
  if (offsets.size() != 2 || offsets[0] < 0 || offsets[1] < offsets[0] ||
      offsets[1] > room) {
    return damaged(name, "data_offsets must lie in the file's ", room, " bytes of data");
  }
  result.bytes.resize(static_cast<size_t>(offsets[1] - offsets[0]));
  std::ifstream file(shard->path, std::ios::binary);
  file.seekg(shard->data_begin + offsets[0]);
  file.read(result.bytes.data(), static_cast<std::streamsize>(result.bytes.size()));
  if (!file) return damaged(name, "cannot read its ", result.bytes.size(), " bytes");
  return result;
}

// Bits [at, at + width) of a little-endian bit string, one bit after the other.
uint32_t bits_at(const std::string& bytes, size_t row_begin, int64_t at, int width) {
  uint32_t code = 0;
  for (int bit = 0; bit < width; ++bit) {
    const int64_t position = at + bit;
    const auto byte =
        static_cast<uint8_t>(bytes[row_begin + static_cast<size_t>(position / 8)]);
    code |= static_cast<uint32_t>((byte >> (position % 8)) & 1) << bit;
  }
  return code;
}

uint8_t code_byte(const ElementInfo& info, uint32_t bits) {
  const bool negative = info.kind == ElementKind::integer && info.lowest < 0 &&
                        (bits >> (info.bits - 1)) != 0;
  return static_cast<uint8_t>(negative ? bits | (0xffu << info.bits) : bits);
}

// The padding bits after the last code of a row must be zero.
bool zero_padding(const std::string& bytes, size_t row_begin, int64_t used,
                  int64_t row_bytes) {
  return used == 8 * row_bytes ||
         bits_at(bytes, row_begin, used, static_cast<int>(8 * row_bytes - used)) == 0;
}

float level_value(Element element, const std::string& bytes, size_t row_begin,
                  int64_t c) {
  const ElementInfo& info = element_info(element);
  if (info.bits == 32) {
    float value;
    std::memcpy(&value, bytes.data() + row_begin + static_cast<size_t>(4 * c),
                sizeof(value));
    return value;
  }
  const uint32_t bits = bits_at(bytes, row_begin, c * info.bits, info.bits);
  if (element == Element::f16) return float_from_f16(static_cast<uint16_t>(bits));
  if (element == Element::bf16) return float_from_bf16(static_cast<uint16_t>(bits));
  return value_of(element, code_byte(info, bits));
}

Result<CodedLevel> DirectoryReader::level(const std::string& name,
                                          const ScaleLevel& level, int64_t rows,
                                          int64_t cols, float shift) {
  NIBBLE_ASSIGN_OR_RETURN(const Stored stored, this->stored(name));
  used_.insert(name);
  const LevelShape shape = level_shape(level.block, rows, cols);
  const int bits = element_info(level.element).bits;
  const int64_t row_bytes = (shape.cols * bits + 7) / 8;
  if (static_cast<int64_t>(stored.bytes.size()) != shape.rows * row_bytes) {
    return damaged(name, shape.rows, " rows of ", shape.cols, " values take ",
                   shape.rows * row_bytes, " bytes; found ", stored.bytes.size());
  }
  CodedLevel result{shape.rows, shape.cols, {}, shift};
  result.values.reserve(static_cast<size_t>(shape.rows * shape.cols));
  for (int64_t r = 0; r < shape.rows; ++r) {
    const auto begin = static_cast<size_t>(r * row_bytes);
    for (int64_t c = 0; c < shape.cols; ++c) {
      result.values.push_back(level_value(level.element, stored.bytes, begin, c));
    }
    if (!zero_padding(stored.bytes, begin, shape.cols * bits, row_bytes)) {
      return damaged(name, "padding bits must be zero; found others in row ", r);
    }
  }
  return result;
}

Result<CodedMatrix> DirectoryReader::weight(const std::string& name, const Json& json) {
  CodedMatrix q;
  NIBBLE_ASSIGN_OR_RETURN(q.scheme, parse_scheme(json.at("scheme").get<std::string>()));
  q.rows = json.at("rows").get<int64_t>();
  q.cols = json.at("cols").get<int64_t>();
  if (q.rows < 1 || q.cols < 1 || q.rows > kMaxElements / q.cols) {
    return damaged(name, "rows and cols must be sane; found ", q.rows, " and ", q.cols);
  }
  NIBBLE_ASSIGN_OR_RETURN(const Stored stored, this->stored(name + ".codes"));
  used_.insert(name + ".codes");
  const ElementInfo& info = element_info(q.scheme.code);
  const int64_t row_bytes = (q.cols * info.bits + 7) / 8;
  if (static_cast<int64_t>(stored.bytes.size()) != q.rows * row_bytes) {
    return damaged(name, q.rows, " rows of ", q.cols, " codes of ", info.bits,
                   " bits take ", q.rows * row_bytes, " bytes; found ",
                   stored.bytes.size());
  }
  q.codes.resize(static_cast<size_t>(q.rows * q.cols));
  parallel_for(q.rows, [&](int64_t r) {
    const auto begin = static_cast<size_t>(r * row_bytes);
    for (int64_t c = 0; c < q.cols; ++c) {
      q.codes[static_cast<size_t>(r * q.cols + c)] =
          code_byte(info, bits_at(stored.bytes, begin, c * info.bits, info.bits));
    }
  });
  for (int64_t r = 0; r < q.rows; ++r) {
    const auto begin = static_cast<size_t>(r * row_bytes);
    if (!zero_padding(stored.bytes, begin, q.cols * info.bits, row_bytes)) {
      return damaged(name, "padding bits must be zero; found others in row ", r);
    }
  }
  const auto numbered = [](const std::string& base, size_t i) {
    return i == 0 ? base : cat(base, i);
  };
  const auto shift = [&](const char* field, size_t i) {
    return i == 0 && json.contains(field) ? json.at(field).get<float>() : 0.0f;
  };
  for (size_t i = 0; i < q.scheme.scales.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(
        CodedLevel scale, level(numbered(name + ".scale", i), q.scheme.scales[i], q.rows,
                                q.cols, shift("scale_shift", i)));
    q.scales.push_back(std::move(scale));
  }
  const std::string offset =
      name + (q.scheme.offset == OffsetKind::minimum ? ".minimum" : ".zero_point");
  for (size_t i = 0; i < q.scheme.offsets.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(
        CodedLevel values, level(numbered(offset, i), q.scheme.offsets[i], q.rows, q.cols,
                                 shift("offset_shift", i)));
    q.offsets.push_back(std::move(values));
  }
  return q;
}

Result<Decoded> DirectoryReader::read() {
  Decoded decoded;
  NIBBLE_ASSIGN_OR_RETURN(const std::string manifest, text("manifest.json"));
  NIBBLE_ASSIGN_OR_RETURN(decoded.config_json, text("config.json"));
  try {
    manifest_ = parse_json_or_throw(manifest);
    for (const auto& [name, json] : manifest_.at("weights").items()) {
      NIBBLE_ASSIGN_OR_RETURN(CodedMatrix q, weight(name, json));
      decoded.coded.emplace(name, std::move(q));
    }
    for (const auto& [name, json] : manifest_.at("tensors").items()) {
      if (used_.count(name)) continue;
      NIBBLE_ASSIGN_OR_RETURN(Stored stored, this->stored(name));
      Tensor tensor;
      NIBBLE_ASSIGN_OR_RETURN(tensor.dtype, dtype_from_name(stored.dtype));
      tensor.shape = stored.shape;
      if (static_cast<int64_t>(stored.bytes.size()) !=
          tensor.numel() * dtype_bytes(tensor.dtype)) {
        return damaged(name, stored.dtype, " ", shape_text(stored.shape),
                       " does not take ", stored.bytes.size(), " bytes");
      }
      tensor.bytes = Bytes::copy_of(stored.bytes.data(), stored.bytes.size());
      decoded.floats.emplace(name, std::move(tensor));
    }
  } catch (const Json::exception& failure) {
    return damaged((directory_ / "manifest.json").string(),
                   "must have the fields that FORMAT.md lists; ", failure.what());
  }
  return decoded;
}

}  // namespace

Result<Decoded> read_nibble(const std::filesystem::path& directory) {
  return DirectoryReader(directory).read();
}

}  // namespace nibble
