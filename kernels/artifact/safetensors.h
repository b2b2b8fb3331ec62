// safetensors files: mapped and bounds-checked reading, atomic writing.
//
//   u64 header length N | N bytes of JSON {name: {dtype, shape, data_offsets}} | bytes
//
// Reading enforces every rule of the reference parser and refuses duplicate keys.
// data_loss: a truncated or damaged file (the message names the file, the tensor and the
// rule). Tensors are views into the mapping. The writer orders tensors by alignment
// descending, then by name, and pads the header to 8 bytes, so equal content gives equal
// bytes.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"

namespace nibble {

struct SafetensorsFile {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
};
Result<SafetensorsFile> read_safetensors(const std::filesystem::path& path);

// model.safetensors, or every shard that model.safetensors.index.json names.
// not_found: no weights in the directory, or a missing shard (named).
// sources: receives the files read, relative to the directory, sorted.
Result<std::map<std::string, Tensor>> read_sharded_safetensors(
    const std::filesystem::path& directory, std::vector<std::string>* sources);

// What a file will look like, before its tensors are there: everything up to the first
// tensor, and where each one goes.
struct StoredShape {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  uint64_t bytes() const;
};
struct SafetensorsLayout {
  std::string head;                          // the length and the header
  std::vector<std::string> order;            // of the tensors
  std::map<std::string, uint64_t> offsets;   // from the file's begin
  uint64_t bytes = 0;                        // of the whole file
};
// invalid_argument: a reserved name or one that is not UTF-8, a header that is too long.
Result<SafetensorsLayout> layout_safetensors(
    const std::map<std::string, StoredShape>& tensors,
    const std::map<std::string, std::string>& metadata);

// path is written as it is (call it on an AtomicDirectory's staging area, or use
// _atomically).
Status write_safetensors(const std::filesystem::path& path,
                         const std::map<std::string, Tensor>& tensors,
                         const std::map<std::string, std::string>& metadata);
Status write_safetensors_atomically(const std::filesystem::path& path,
                                    const std::map<std::string, Tensor>& tensors,
                                    const std::map<std::string, std::string>& metadata);

}  // namespace nibble
