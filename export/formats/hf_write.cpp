// A Hugging Face directory of floats: config.json, model.safetensors (sharded by size),
// tokenizer files. Quantized weights are dequantized, then everything is rounded to the
// dtype that was asked for; q and k rows that pair as (2i, 2i+1) are put in the order
// that transformers' rope reads.
//
// Each shard is read back and every byte compared before the directory gets its name.
#include <cmath>
#include <cstring>

#include "export/formats/readers.h"
#include "export/formats/writers.h"
#include "export/huggingface/rope_order.h"
#include "kernels/artifact/safetensors.h"
#include "kernels/artifact/shards.h"
#include "kernels/base/cancel.h"
#include "kernels/base/file.h"
#include "kernels/base/float_types.h"
#include "kernels/base/json.h"
#include "kernels/packing/packed_tensor.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

struct HfDType {
  const char* name;    // of the option
  const char* config;  // in config.json
  DType dtype;
};
constexpr HfDType kDTypes[] = {{"f32", "float32", DType::f32},
                               {"bf16", "bfloat16", DType::bf16},
                               {"f16", "float16", DType::f16}};

const HfDType* find_dtype(const std::string& name) {
  for (const HfDType& row : kDTypes) {
    if (name == row.name || (name.empty() && row.dtype == DType::f32)) return &row;
  }
  return nullptr;
}

template <class... Parts>
Status unsupported(const Parts&... parts) {
  return error(StatusCode::unsupported, "[hf] ", parts...);
}

// Rows (x0, y0, x1, y1 ..) of each head become (x0, x1 .., y0, y1 ..).
std::vector<float> halves_first(const std::vector<float>& values, int64_t cols,
                                int64_t head_dim) {
  std::vector<float> result(values.size());
  const int64_t rows = static_cast<int64_t>(values.size()) / cols;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t from = halves_first_row(r, head_dim);
    std::memcpy(result.data() + r * cols, values.data() + from * cols,
                static_cast<size_t>(cols) * sizeof(float));
  }
  return result;
}

class HfWriter {
 public:
  HfWriter(const Artifact& artifact, const ExportOptions& options)
      : artifact_(artifact), options_(options), dtype_(*find_dtype(options.dtype)) {}

  Status write(AtomicDirectory& files) {
    NIBBLE_ASSIGN_OR_RETURN(interleaved_, interleaved_tensors(artifact_.program, "hf"));
    std::map<std::string, int64_t> sizes;
    for (const Node& node : artifact_.program.nodes) {
      for (const auto& [role, name] : node.parameters) {
        NIBBLE_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, shape_of(name));
        sizes[name] = dtype_bytes(dtype_.dtype);
        for (const int64_t dim : shape) sizes[name] *= dim;
      }
    }
    const std::vector<Shard> shards = split_shards(sizes, options_.shard_bytes);
    for (const Shard& shard : shards) {
      NIBBLE_RETURN_IF_ERROR(check_cancelled("hf"));
      std::map<std::string, Tensor> tensors;
      for (const std::string& name : shard.tensors) {
        NIBBLE_ASSIGN_OR_RETURN(tensors[name], tensor(name));
      }
      const std::filesystem::path path = files.staging() / shard.file;
      NIBBLE_RETURN_IF_ERROR(write_safetensors(path, tensors, {{"format", "pt"}}));
      NIBBLE_ASSIGN_OR_RETURN(const SafetensorsFile read, read_safetensors(path));
      NIBBLE_RETURN_IF_ERROR(compare(tensors, read.tensors));
    }
    const std::string index = shard_index(shards, sizes);
    if (!index.empty()) NIBBLE_RETURN_IF_ERROR(files.write(kShardIndex, index));
    NIBBLE_ASSIGN_OR_RETURN(const std::string config, config_json());
    NIBBLE_RETURN_IF_ERROR(files.write("config.json", config));
    for (const auto& [name, contents] : artifact_.tokenizer) {
      NIBBLE_RETURN_IF_ERROR(files.write(name, contents.text()));
    }
    NIBBLE_ASSIGN_OR_RETURN(const Decoded decoded, read_hf(files.staging()));
    for (const auto& [name, size] : sizes) {
      const auto found = decoded.floats.find(name);
      if (found != decoded.floats.end() &&
          static_cast<int64_t>(found->second.bytes.size()) == size) {
        continue;
      }
      return error(StatusCode::data_loss, "[hf] ", name,
                   ": every parameter must be in the written files; read back none of "
                   "its size");
    }
    return ok_status();
  }

 private:
  Result<std::vector<int64_t>> shape_of(const std::string& name) const {
    const auto packed = artifact_.packed.find(name);
    if (packed != artifact_.packed.end()) return packed->second.shape;
    const auto tensor = artifact_.tensors.find(name);
    if (tensor != artifact_.tensors.end()) return tensor->second.shape;
    return error(StatusCode::not_found, "[hf] ", name,
                 ": every parameter must be in the artifact; found none of this name");
  }

  Result<Tensor> tensor(const std::string& name) const {
    std::vector<float> values;
    Tensor result;
    NIBBLE_ASSIGN_OR_RETURN(result.shape, shape_of(name));
    const auto packed = artifact_.packed.find(name);
    if (packed != artifact_.packed.end()) {
      const PackedTensor& p = packed->second;
      values.resize(static_cast<size_t>(p.rows * p.cols));
      NIBBLE_RETURN_IF_ERROR(
          dequantize_rows(p, 0, MatrixView<float>(values.data(), p.rows, p.cols)));
    } else {
      NIBBLE_ASSIGN_OR_RETURN(values, to_float(artifact_.tensors.at(name)));
    }
    if (const auto found = interleaved_.find(name); found != interleaved_.end()) {
      const int64_t cols = result.shape.size() > 1 ? result.shape[1] : 1;
      values = halves_first(values, cols, found->second);
    }
    result.dtype = dtype_.dtype;
    if (dtype_.dtype == DType::f32) {
      result.bytes = Bytes::copy_of(values.data(), values.size() * sizeof(float));
      return result;
    }
    const bool half = dtype_.dtype == DType::f16;
    std::vector<uint16_t> words(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      words[i] = half ? f16_from_float(values[i]) : bf16_from_float(values[i]);
      if (std::isfinite(half ? float_from_f16(words[i]) : float_from_bf16(words[i]))) {
        continue;
      }
      return error(StatusCode::out_of_range, "[hf] ", name, ": every value must fit ",
                   dtype_.name, "; found ", values[i], " at index ", i, " of ",
                   shape_text(result.shape), "; use --dtype bf16 or f32");
    }
    result.bytes = Bytes::copy_of(words.data(), words.size() * sizeof(uint16_t));
    return result;
  }

  static Status compare(const std::map<std::string, Tensor>& written,
                        const std::map<std::string, Tensor>& read) {
    for (const auto& [name, tensor] : written) {
      const auto found = read.find(name);
      if (found != read.end() && found->second.bytes.text() == tensor.bytes.text()) {
        continue;
      }
      return error(StatusCode::data_loss, "[hf] ", name,
                   ": must read back as it was written; found other bytes; is the disk "
                   "sound?");
    }
    return ok_status();
  }

  Result<std::string> config_json() const {
    Json config = parse_ordered_json(artifact_.config_json);
    if (!config.is_object()) {
      return error(StatusCode::data_loss,
                   "[hf] config.json: must be one JSON object; found something else");
    }
    config.erase("rope_interleaved");  // nibble's own
    // transformers 5 says dtype, and reads torch_dtype as well.
    const char* key = config.contains("dtype") ? "dtype" : "torch_dtype";
    config[key] = dtype_.config;
    return config.dump(2) + "\n";
  }

  const Artifact& artifact_;
  const ExportOptions& options_;
  const HfDType& dtype_;
  std::map<std::string, int64_t> interleaved_;
};

}  // namespace

Status can_express_hf(const Artifact& artifact, const ExportOptions& options) {
  const Program& program = artifact.program;
  if (find_dtype(options.dtype) == nullptr) {
    return error(StatusCode::invalid_argument,
                 "[hf] dtype: must be one of f32, bf16, f16; found `", options.dtype,
                 "`");
  }
  if (options.shard_bytes < 1) {
    return error(StatusCode::invalid_argument,
                 "[hf] shard_bytes: must be at least 1; found ", options.shard_bytes);
  }
  const Json config = parse_ordered_json(artifact.config_json);
  if (program.inputs.empty() || program.inputs[0].dtype != DType::i64 ||
      !config.is_object() || !config.contains("model_type")) {
    return unsupported(program.architecture,
                       ": transformers must have the architecture; found one that it has "
                       "not; export to the nibble format");
  }
  for (const auto& [value, activation] : artifact.activations) {
    return unsupported("value ", value, ": activations must be float; found ",
                       to_string(activation.scheme), "; export to the nibble format");
  }
  for (const auto& [tensor, layer] : artifact.layers) {
    if (layer.input) {
      return unsupported("the input of ", tensor, ": activations must be float; found ",
                         to_string(layer.input->scheme), "; export to the nibble format");
    }
    const LayerExtras& extras = layer.extras;
    for (const std::string* extra :
         {&extras.permutation, &extras.low_rank_a, &extras.low_rank_b}) {
      if (extra->empty()) continue;
      return unsupported(tensor, ": a layer must be its codes and scales alone; found ",
                         *extra, "; export to the nibble format");
    }
  }
  return interleaved_tensors(program, "hf").status();
}

Status write_hf(const Artifact& artifact, const std::filesystem::path& directory,
                const ExportOptions& options) {
  NIBBLE_RETURN_IF_ERROR(can_express_hf(artifact, options));
  NIBBLE_ASSIGN_OR_RETURN(AtomicDirectory files,
                          AtomicDirectory::create(directory, options.overwrite));
  NIBBLE_RETURN_IF_ERROR(HfWriter(artifact, options).write(files));
  return files.commit();
}

}  // namespace nibble
