// A GGUF file: its metadata and where its tensors lie, every size checked against the
// file before anything is read from it.
//
//   metadata | tensor infos {name, dims (innermost first), type, offset} | padding |
//   tensors, each padded to general.alignment
//
// data_loss: not a GGUF; a tensor's name comes twice or is longer than 63 bytes; more
// than four dimensions or an empty one; a row that is not whole blocks; an offset that is
// not the sum of the sizes before it; data beyond the file. unsupported: a block type
// that nibble does not know (names tensor and number), one part of a split file. The
// tensors are views of the mapped file.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "export/formats/gguf_metadata.h"
#include "export/ggml/ggml_type.h"
#include "kernels/base/tensor.h"

namespace nibble {

struct GgufTensor {
  std::string name;
  const GgmlType* type = nullptr;
  std::vector<int64_t> dims;  // innermost first: a weight [out, in] is (in, out)
  Bytes bytes;
  int64_t cols() const { return dims.empty() ? 1 : dims[0]; }
  int64_t rows() const;
};

struct GgufFile {
  Bytes bytes;
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;  // in the order of the file
  const GgufTensor* find(std::string_view name) const;
};
Result<GgufFile> parse_gguf(Bytes bytes);
Result<GgufFile> open_gguf(const std::filesystem::path& path);

}  // namespace nibble
