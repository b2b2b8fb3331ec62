#include "export/gguf/gguf_model.h"

#include <algorithm>
#include <cstring>

#include "export/ggml/unpack.h"
#include "export/gguf/gguf_config.h"
#include "export/gguf/vocabulary.h"

namespace nibble {
namespace {

template <class... Parts>
Status damaged(const Parts&... parts) {
  return error(StatusCode::data_loss, "[gguf] ", parts..., "; the file is damaged");
}

// The row of the file where row r of the checkpoint lies: halves come from pairs.
int64_t paired_row(int64_t r, int64_t head_dim) {
  const int64_t i = r % head_dim, half = head_dim / 2;
  return r - i + (i < half ? 2 * i : 2 * (i - half) + 1);
}

Status add_parameters(const GgufTensor& tensor, int64_t experts, int64_t head_dim,
                      std::vector<GgufParameter>& out) {
  const bool of_experts = holds_experts(tensor.name);
  const std::string single = parameter_name(tensor.name);
  if (single.empty() && !of_experts) {
    return error(StatusCode::unsupported, "[gguf] tensor ", tensor.name,
                 ": one of a decoder that nibble knows was required; found another; its "
                 "architecture has parts that nibble has not");
  }
  const size_t dims = of_experts ? 3 : 2;
  if (tensor.dims.empty() || tensor.dims.size() > dims ||
      (of_experts && (tensor.dims.size() != 3 || tensor.dims[2] != experts))) {
    return damaged("tensor ", tensor.name, ": ", of_experts ? 3 : 1,
                   of_experts ? cat(" dimensions, the last of ", experts)
                              : std::string(" or 2 dimensions"),
                   " were required; found ", tensor.dims.size());
  }
  for (int64_t e = 0; e < (of_experts ? experts : 1); ++e) {
    GgufParameter parameter;
    parameter.tensor = tensor;
    parameter.name = of_experts ? parameter_name(tensor.name, e) : single;
    const bool vector = tensor.dims.size() == 1;
    parameter.rows = vector ? 1 : tensor.dims[1];
    parameter.first_row = e * parameter.rows;
    parameter.shape = vector ? std::vector<int64_t>{tensor.dims[0]}
                             : std::vector<int64_t>{tensor.dims[1], tensor.dims[0]};
    const int64_t turned = vector ? tensor.dims[0] : tensor.dims[1];
    if (head_dim > 0 && is_turned(parameter.name)) {
      if (turned % head_dim != 0)
        return damaged("tensor ", tensor.name, ": whole heads of ", head_dim,
                       " rows were required; found ", turned);
      parameter.head_dim = head_dim;
    }
    out.push_back(std::move(parameter));
  }
  return ok_status();
}

}  // namespace

bool is_gguf(const Bytes& file) { return file.text().substr(0, 4) == "GGUF"; }

Result<GgufModel> open_gguf_model(const std::filesystem::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(GgufFile file, open_gguf(path));
  return gguf_model_of(std::move(file));
}

Result<GgufModel> gguf_model_of(GgufFile file) {
  GgufModel model;
  model.file = std::move(file);
  NIBBLE_ASSIGN_OR_RETURN(const GgufConfig config, read_gguf_config(model.file));
  model.architecture = config.architecture;
  model.config_json = config.json;
  const int64_t head_dim = config.architecture->interleaved ? config.head_dim : 0;
  for (const GgufTensor& tensor : model.file.tensors) {
    if (tensor.name == kRopeFrequencies) continue;  // in config.json
    NIBBLE_RETURN_IF_ERROR(
        add_parameters(tensor, config.experts, head_dim, model.parameters));
  }
  return model;
}

Result<CodedMatrix> read_codes(const GgufParameter& parameter) {
  const GgmlType& type = *parameter.tensor.type;
  const int64_t cols = parameter.tensor.cols(), row_bytes = type.row_bytes(cols);
  const std::span<const std::byte> bytes = parameter.tensor.bytes.span().subspan(
      static_cast<size_t>(parameter.first_row * row_bytes),
      static_cast<size_t>(parameter.rows * row_bytes));
  Result<CodedMatrix> read = unpack_ggml(type, parameter.rows, cols, bytes);
  if (!read.ok()) {
    return Status(read.status().code(), cat("[gguf] tensor ", parameter.tensor.name, ": ",
                                            read.status().message()));
  }
  if (parameter.head_dim == 0) return read;
  CodedMatrix turned = *read;
  const auto move = [&](const auto& from, auto& to, int64_t columns) {
    for (int64_t r = 0; r < parameter.rows; ++r) {
      const auto row = from.begin() + paired_row(r, parameter.head_dim) * columns;
      std::copy(row, row + columns, to.begin() + r * columns);
    }
  };
  move(read->codes, turned.codes, cols);
  for (size_t k = 0; k < read->scales.size(); ++k)
    move(read->scales[k].values, turned.scales[k].values, read->scales[k].cols);
  for (size_t k = 0; k < read->offsets.size(); ++k)
    move(read->offsets[k].values, turned.offsets[k].values, read->offsets[k].cols);
  return turned;
}

Result<Tensor> read_floats(const GgufParameter& parameter) {
  const GgmlType& type = *parameter.tensor.type;
  Tensor tensor;
  tensor.shape = parameter.shape;
  tensor.dtype = type.scheme.code == Element::f32   ? DType::f32
                 : type.scheme.code == Element::f16 ? DType::f16
                                                    : DType::bf16;
  const bool vector = parameter.shape.size() == 1;
  const int64_t row_bytes = vector ? type.bytes : type.row_bytes(parameter.tensor.cols());
  const int64_t rows = vector ? parameter.shape[0] : parameter.rows;
  tensor.bytes =
      parameter.tensor.bytes.slice(static_cast<size_t>(parameter.first_row * row_bytes),
                                   static_cast<size_t>(rows * row_bytes));
  if (parameter.head_dim == 0) return tensor;
  std::byte* out = nullptr;
  const Bytes turned = Bytes::allocate(tensor.bytes.size(), &out);
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(out + r * row_bytes,
                tensor.bytes.data() + paired_row(r, parameter.head_dim) * row_bytes,
                static_cast<size_t>(row_bytes));
  }
  tensor.bytes = turned;
  return tensor;
}

Result<std::map<std::string, Bytes>> gguf_tokenizer_files(const GgufMetadata& metadata) {
  const Result<GgufVocabulary> vocabulary = gguf_vocabulary(metadata);
  if (!vocabulary.ok()) return std::map<std::string, Bytes>();
  std::string chat_template;
  const auto found = metadata.values.find("tokenizer.chat_template");
  if (found != metadata.values.end()) {
    if (const auto* text = std::get_if<std::string_view>(&found->second))
      chat_template = *text;
  }
  return tokenizer_files(*vocabulary, chat_template);
}

std::string gguf_type_counts(const GgufFile& file) {
  std::map<std::string, int64_t> counts;
  for (const GgufTensor& tensor : file.tensors) ++counts[tensor.type->name];
  std::vector<std::pair<std::string, int64_t>> rows(counts.begin(), counts.end());
  std::stable_sort(rows.begin(), rows.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string text;
  for (const auto& [type, count] : rows) {
    text +=
        cat(text.empty() ? "" : ", ", type, " ", count, " tensor", count == 1 ? "" : "s");
  }
  return text;
}

}  // namespace nibble
