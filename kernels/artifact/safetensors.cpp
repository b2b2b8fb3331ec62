#include "kernels/artifact/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <tuple>
#include <vector>

#include "kernels/base/file.h"
#include "kernels/base/json.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference parser's limit

// Types of the format that nibble has no use for: understood, refused by name.
bool is_other_dtype(const std::string& name) {
  for (const char* other :
       {"F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64", "F4", "F6_E2M3", "F6_E3M2"}) {
    if (name == other) return true;
  }
  return false;
}

// JSON with duplicate keys refused (the reference lets the last one win).
Result<Json> parse_header(std::string_view text, const std::string& where) {
  // nlohmann takes a NUL as the end and skips a byte order mark; JSON has neither.
  if (text.find('\0') != std::string_view::npos || text.substr(0, 1) == "\xef") {
    return error(
        StatusCode::data_loss, "[safetensors] ", where,
        ": the header must be JSON text; found a byte that JSON does not allow; the "
        "file is damaged");
  }
  std::vector<std::set<std::string>> keys;
  std::string duplicate;
  const auto watch = [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const std::string& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second && duplicate.empty()) duplicate = key;
    }
    return true;
  };
  Json json = Json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return error(
        StatusCode::data_loss, "[safetensors] ", where,
        ": the header must be one JSON object in UTF-8; found something else; the "
        "file is damaged");
  }
  if (!duplicate.empty()) {
    return error(StatusCode::data_loss, "[safetensors] ", where, ": tensor ", duplicate,
                 ": every key must be unique; found it twice; the file is damaged");
  }
  return json;
}

struct Entry {
  std::string name;
  Tensor tensor;
  uint64_t begin = 0, end = 0;
};

Status bad_entry(const std::string& file, const std::string& name,
                 const std::string& what) {
  return error(StatusCode::data_loss, "[safetensors] ", file, ": tensor ", name, ": ",
               what, "; the file is damaged");
}

Result<Entry> parse_entry(const std::string& file, const std::string& name,
                          const Json& json) {
  Entry entry;
  entry.name = name;
  const auto field = [&](const char* key) -> const Json& {
    static const Json none;
    const auto found = json.find(key);
    return found == json.end() ? none : *found;
  };
  if (!json.is_object()) return bad_entry(file, name, "its entry must be an object");
  const Json &dtype = field("dtype"), &shape = field("shape"),
             &offsets = field("data_offsets");
  if (!dtype.is_string()) return bad_entry(file, name, "dtype must be a string");
  const std::string& dtype_text = dtype.get_ref<const std::string&>();
  if (is_other_dtype(dtype_text)) {
    return error(StatusCode::unsupported, "[safetensors] ", file, ": tensor ", name,
                 ": nibble reads integers, F64, F32, F16, BF16 and F8; found dtype ",
                 dtype_text, "; convert it first");
  }
  const Result<DType> parsed = dtype_from_name(dtype_text);
  if (!parsed.ok())
    return bad_entry(file, name, cat("dtype ", dtype_text, " is unknown"));
  entry.tensor.dtype = *parsed;

  if (!shape.is_array()) return bad_entry(file, name, "shape must be an array");
  uint64_t bytes = static_cast<uint64_t>(dtype_bytes(entry.tensor.dtype));
  // A 0 makes the product 0 at once; without it a huge size beside it would count as
  // overflow.
  bool empty = false;
  for (const Json& size : shape) empty = empty || size == 0;
  for (const Json& size : shape) {
    if (!size.is_number_unsigned() ||
        size.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      return bad_entry(file, name, "a shape must hold non-negative integers");
    }
    entry.tensor.shape.push_back(static_cast<int64_t>(size.get<uint64_t>()));
    if (!empty && __builtin_mul_overflow(bytes, size.get<uint64_t>(), &bytes)) {
      return bad_entry(file, name, "the size of its shape overflows 64 bits");
    }
  }
  if (empty) bytes = 0;

  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    return bad_entry(file, name, "data_offsets must be two non-negative integers");
  }
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
    return bad_entry(
        file, name,
        cat("its shape ", shape_text(entry.tensor.shape), " of ", dtype_text, " needs ",
            bytes, " bytes; data_offsets say [", entry.begin, ", ", entry.end, "]"));
  }
  return entry;
}

// --- writing

// Position of a type in the reference writer's order (alignment falling, then fixed).
int write_rank(DType dtype) {
  static const DType order[] = {
      DType::u64,     DType::i64, DType::f64,     DType::f32,
      DType::u32,     DType::i32, DType::bf16,    DType::f16,
      DType::u16,     DType::i16, DType::f8_e8m0, DType::f8_e4m3,
      DType::f8_e5m2, DType::i8,  DType::u8,      DType::boolean};
  return static_cast<int>(std::find(std::begin(order), std::end(order), dtype) - order);
}

// Text as JSON; a name that is not UTF-8 has no JSON form.
Result<std::string> json_text(const std::string& text) {
  try {
    return Json(text).dump();
  } catch (const Json::exception&) {
    return error(StatusCode::invalid_argument, "[safetensors] tensor name `", text,
                 "`: names must be UTF-8; found other bytes; rename the tensor");
  }
}

class File {
 public:
  explicit File(const std::filesystem::path& path) : path_(path) {
    descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  }
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  bool is_open() const { return descriptor_ >= 0; }

  Status write(const void* data, size_t size) {
    const char* at = static_cast<const char*>(data);
    while (descriptor_ >= 0 && size > 0) {
      const ssize_t written = ::write(descriptor_, at, size);
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) return fail("write");
      // The disk begins while more is written; finish() waits for it.
      ::sync_file_range(descriptor_, position_, written, SYNC_FILE_RANGE_WRITE);
      position_ += written;
      at += written;
      size -= static_cast<size_t>(written);
    }
    return descriptor_ >= 0 ? ok_status() : fail("open");
  }
  Status finish() {
    // A device that cannot sync (EINVAL) has nothing to lose.
    if (::fsync(descriptor_) != 0 && errno != EINVAL) return fail("sync");
    const int descriptor = descriptor_;
    descriptor_ = -1;
    if (::close(descriptor) != 0) return fail("close");
    return ok_status();
  }

 private:
  Status fail(const char* what) {
    return error(StatusCode::io_error, "[safetensors] ", path_.string(), ": cannot ",
                 what, ": ", std::strerror(errno));
  }
  std::filesystem::path path_;
  int descriptor_ = -1;
  off_t position_ = 0;
};

// Makes a rename in the directory last.
Status sync_directory(const std::filesystem::path& directory) {
  const int descriptor = ::open(directory.empty() ? "." : directory.c_str(),
                                O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0)
    return ok_status();  // readable directories only; the data is synced
  ::fsync(descriptor);
  ::close(descriptor);
  return ok_status();
}

Status write_parts(File& file, const std::string& header,
                   const std::vector<const Tensor*>& tensors) {
  NIBBLE_RETURN_IF_ERROR(file.write(header.data(), header.size()));
  for (const Tensor* tensor : tensors) {
    NIBBLE_RETURN_IF_ERROR(for_each_piece(tensor->bytes, [&file](const Bytes& piece) {
      return file.write(piece.data(), piece.size());
    }));
  }
  return file.finish();
}

// Removes what a failed write has left, unless the path could not be opened or is a
// device.
Status write_all(const std::filesystem::path& path, const std::string& header,
                 const std::vector<const Tensor*>& tensors) {
  File file(path);
  const bool opened = file.is_open();
  const Status written = write_parts(file, header, tensors);
  std::error_code ignored;
  if (!written.ok() && opened && std::filesystem::is_regular_file(path, ignored)) {
    std::filesystem::remove(path, ignored);
  }
  return written;
}

Result<Json> read_index(const std::filesystem::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  NIBBLE_ASSIGN_OR_RETURN(Json index, parse_header(text, path.string()));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) {
    return error(StatusCode::data_loss, "[safetensors] ", path.string(),
                 ": an index must have the object `weight_map`; found none");
  }
  for (const auto& [name, file] : map->items()) {
    const bool plain = file.is_string() && !file.get_ref<const std::string&>().empty() &&
                       file.get_ref<const std::string&>().find('/') == std::string::npos;
    if (!plain) {
      return error(StatusCode::data_loss, "[safetensors] ", path.string(), ": tensor ",
                   name, ": weight_map must name a file of the same directory; found ",
                   file.dump());
    }
  }
  return *map;
}

}  // namespace

uint64_t StoredShape::bytes() const {
  uint64_t count = 1;
  for (const int64_t size : shape) count *= static_cast<uint64_t>(size);
  return count * static_cast<uint64_t>(dtype_bytes(dtype));
}

Result<SafetensorsFile> read_safetensors(const std::filesystem::path& path) {
  const std::string file = path.string();
  NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(path));
  if (bytes.size() < 8) {
    return error(StatusCode::data_loss, "[safetensors] ", file,
                 ": a file has at least 8 bytes; found ", bytes.size(),
                 "; it is truncated");
  }
  uint64_t header_size = 0;
  for (int i = 0; i < 8; ++i) {
    header_size |= static_cast<uint64_t>(bytes.data()[i]) << (8 * i);
  }
  if (header_size > kMaxHeaderBytes) {
    return error(StatusCode::data_loss, "[safetensors] ", file,
                 ": a header has at most 100000000 bytes; the file says ", header_size,
                 "; it is damaged or no safetensors file");
  }
  if (header_size > bytes.size() - 8) {
    return error(StatusCode::data_loss, "[safetensors] ", file, ": the header needs ",
                 header_size, " bytes; found ", bytes.size() - 8,
                 "; the file is truncated");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Json header,
                          parse_header(bytes.slice(8, header_size).text(), file));

  SafetensorsFile result;
  std::vector<Entry> entries;
  for (const auto& [name, json] : header.items()) {
    if (name == "__metadata__") {
      if (!json.is_object()) return bad_entry(file, name, "metadata must be an object");
      for (const auto& [key, value] : json.items()) {
        if (!value.is_string()) {
          return bad_entry(file, name, cat("the value of ", key, " must be a string"));
        }
        result.metadata[key] = value.get<std::string>();
      }
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(Entry entry, parse_entry(file, name, json));
    entries.push_back(std::move(entry));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  const uint64_t buffer = bytes.size() - 8 - header_size;
  uint64_t end = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != end) {
      return bad_entry(file, entry.name,
                       cat("tensors must follow each other without holes or overlap; it "
                           "begins at ",
                           entry.begin, " where ", end, " was required"));
    }
    end = entry.end;
  }
  if (end != buffer) {
    return error(StatusCode::data_loss, "[safetensors] ", file, ": its tensors need ",
                 end, " bytes; found ", buffer, "; the file is ",
                 end > buffer ? "truncated" : "damaged: bytes follow the last tensor");
  }
  for (Entry& entry : entries) {
    entry.tensor.bytes =
        bytes.slice(8 + header_size + entry.begin, entry.end - entry.begin);
    result.tensors[entry.name] = std::move(entry.tensor);
  }
  return result;
}

Result<std::map<std::string, Tensor>> read_sharded_safetensors(
    const std::filesystem::path& directory, std::vector<std::string>* sources) {
  std::error_code ignored;
  const char* index_name = "model.safetensors.index.json";
  const bool has_single =
      std::filesystem::exists(directory / "model.safetensors", ignored);
  const bool has_index = std::filesystem::exists(directory / index_name, ignored);
  std::vector<std::string> read;
  std::map<std::string, Tensor> tensors;
  if (!has_index) {
    if (!has_single) {
      return error(StatusCode::not_found, "[safetensors] ", directory.string(),
                   ": needs model.safetensors or ", index_name, "; found neither");
    }
    NIBBLE_ASSIGN_OR_RETURN(SafetensorsFile file,
                            read_safetensors(directory / "model.safetensors"));
    tensors = std::move(file.tensors);
    read = {"model.safetensors"};
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const Json map, read_index(directory / index_name));
    std::map<std::string, std::set<std::string>> files;
    for (const auto& [name, file] : map.items())
      files[file.get<std::string>()].insert(name);
    for (const auto& [file, names] : files) {
      if (!std::filesystem::exists(directory / file, ignored)) {
        return error(StatusCode::not_found, "[safetensors] ", (directory / file).string(),
                     ": ", index_name, " names this shard for ", names.size(),
                     " tensors, the first ", *names.begin(),
                     "; found no such file; is the download complete?");
      }
      NIBBLE_ASSIGN_OR_RETURN(SafetensorsFile shard, read_safetensors(directory / file));
      for (const std::string& name : names) {
        if (!shard.tensors.count(name)) {
          return error(StatusCode::data_loss, "[safetensors] ",
                       (directory / file).string(), ": ", index_name,
                       " says that tensor ", name, " is in this shard; found it is not");
        }
      }
      for (auto& [name, tensor] : shard.tensors) {
        if (!names.count(name)) {
          return error(StatusCode::data_loss, "[safetensors] ",
                       (directory / file).string(), ": holds tensor ", name, ", which ",
                       index_name, " does not place in this shard");
        }
        tensors[name] = std::move(tensor);
      }
      read.push_back(file);
    }
    read.push_back(index_name);
  }
  std::sort(read.begin(), read.end());
  if (sources != nullptr) *sources = std::move(read);
  return tensors;
}

Result<SafetensorsLayout> layout_safetensors(
    const std::map<std::string, StoredShape>& tensors,
    const std::map<std::string, std::string>& metadata) {
  std::vector<std::pair<std::string, const StoredShape*>> ordered;
  for (const auto& [name, tensor] : tensors) {
    if (name == "__metadata__") {
      return error(StatusCode::invalid_argument, "[safetensors] tensor ", name,
                   ": the name is reserved");
    }
    ordered.emplace_back(name, &tensor);
  }
  // The map is sorted by name already.
  std::stable_sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) {
    return write_rank(a.second->dtype) < write_rank(b.second->dtype);
  });

  std::string header = "{";
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      NIBBLE_ASSIGN_OR_RETURN(const std::string key_text, json_text(key));
      NIBBLE_ASSIGN_OR_RETURN(const std::string value_text, json_text(value));
      header += cat(header.back() == '{' ? "" : ",", key_text, ":", value_text);
    }
    header += "}";
  }
  SafetensorsLayout layout;
  for (const auto& [name, tensor] : ordered) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string name_text, json_text(name));
    header += cat(header.size() == 1 ? "" : ",", name_text, ":{\"dtype\":\"",
                  dtype_name(tensor->dtype), "\",\"shape\":[");
    for (size_t i = 0; i < tensor->shape.size(); ++i) {
      header += cat(i ? "," : "", tensor->shape[i]);
    }
    const uint64_t end = layout.bytes + tensor->bytes();
    header += cat("],\"data_offsets\":[", layout.bytes, ",", end, "]}");
    layout.order.push_back(name);
    layout.offsets[name] = layout.bytes;
    layout.bytes = end;
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  if (header.size() > kMaxHeaderBytes) {
    return error(StatusCode::invalid_argument,
                 "[safetensors] a header has at most 100000000 bytes; this one needs ",
                 header.size(), "; write shards");
  }
  const uint64_t size = header.size();
  for (int i = 0; i < 8; ++i) layout.head += static_cast<char>(size >> (8 * i) & 0xff);
  layout.head += header;
  for (auto& [name, offset] : layout.offsets) offset += layout.head.size();
  layout.bytes += layout.head.size();
  return layout;
}

Status write_safetensors(const std::filesystem::path& path,
                         const std::map<std::string, Tensor>& tensors,
                         const std::map<std::string, std::string>& metadata) {
  std::map<std::string, StoredShape> shapes;
  for (const auto& [name, tensor] : tensors) {
    StoredShape stored{tensor.dtype, tensor.shape};
    if (name != "__metadata__" && stored.bytes() != tensor.bytes.size()) {
      return error(StatusCode::invalid_argument, "[safetensors] tensor ", name,
                   ": its shape ", shape_text(tensor.shape), " needs ", stored.bytes(),
                   " bytes; found ", tensor.bytes.size());
    }
    shapes.emplace(name, std::move(stored));
  }
  NIBBLE_ASSIGN_OR_RETURN(const SafetensorsLayout layout,
                          layout_safetensors(shapes, metadata));
  std::vector<const Tensor*> data;
  for (const std::string& name : layout.order) data.push_back(&tensors.at(name));
  return write_all(path, layout.head, data);
}

Status write_safetensors_atomically(const std::filesystem::path& path,
                                    const std::map<std::string, Tensor>& tensors,
                                    const std::map<std::string, std::string>& metadata) {
  std::filesystem::path staging = path;
  staging += cat(".partial-", ::getpid());
  NIBBLE_RETURN_IF_ERROR(write_safetensors(staging, tensors, metadata));
  std::error_code failed;
  std::filesystem::rename(staging, path, failed);
  if (!failed) return sync_directory(path.parent_path());
  std::error_code ignored;
  std::filesystem::remove(staging, ignored);
  return error(StatusCode::io_error, "[safetensors] ", path.string(),
               ": cannot rename the finished file into place: ", failed.message());
}

}  // namespace nibble
