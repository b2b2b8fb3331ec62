// A GGUF as the decoder that it holds: config.json, parameters under the checkpoint's
// names, tokenizer files.
//
// Rows of q and k that the file has in pairs (arch llama) are read in transformers'
// order; the experts of a layer, which the file has in one tensor, one by one. Reading is
// lazy: floats are views of the mapped file where no row moves.
//
// data_loss: a damaged file (gguf_file.h), a key or tensor that is missing or of another
// type or size (named). unsupported: an architecture, a key or a tensor that nibble does
// not know: what it asks for would be left out silently.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "export/gguf/gguf_file.h"
#include "export/gguf/names.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

struct GgufParameter {
  std::string name;  // the checkpoint's
  GgufTensor tensor;
  int64_t first_row = 0, rows = 0;  // of the tensor
  int64_t head_dim = 0;             // rows lie in pairs, heads of so many; 0: they do not
  std::vector<int64_t> shape;
  bool is_float() const { return tensor.type->is_float(); }
};
struct GgufModel {
  GgufFile file;
  const GgufArchitecture* architecture = nullptr;
  std::string config_json;
  std::vector<GgufParameter> parameters;
};

bool is_gguf(const Bytes& file);
Result<GgufModel> gguf_model_of(GgufFile file);
Result<GgufModel> open_gguf_model(const std::filesystem::path& path);
Result<CodedMatrix> read_codes(const GgufParameter& parameter);  // of a block type
Result<Tensor> read_floats(const GgufParameter& parameter);      // of F32, F16, BF16

// Empty where the file has no vocabulary. unsupported: one that nibble cannot read.
Result<std::map<std::string, Bytes>> gguf_tokenizer_files(const GgufMetadata& metadata);

// "Q4_0 56 tensors, F32 17 tensors", the most frequent first.
std::string gguf_type_counts(const GgufFile& file);

}  // namespace nibble
