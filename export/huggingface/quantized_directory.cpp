#include "export/huggingface/quantized_directory.h"

#include <cstring>
#include <mutex>

#include "export/huggingface/rope_order.h"
#include "kernels/artifact/safetensors.h"
#include "kernels/artifact/shards.h"
#include "kernels/base/cancel.h"
#include "kernels/base/file.h"
#include "kernels/base/float_types.h"
#include "kernels/base/json.h"
#include "kernels/base/parallel.h"
#include "kernels/program/layers.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

Result<Json> config_of(const Artifact& artifact, const char* format) {
  Json config = parse_ordered_json(artifact.config_json);
  if (config.is_object()) return config;
  return error(StatusCode::data_loss, "[", format,
               "] config.json: must be one JSON object; found something else");
}

// Memory that one weight after the other uses: fresh pages cost more than what is written
// to them.
class SpareMatrices {
 public:
  CodedMatrix take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (spare_.empty()) return {};
    CodedMatrix q = std::move(spare_.back());
    spare_.pop_back();
    return q;
  }
  void give(CodedMatrix q) {
    const std::lock_guard<std::mutex> lock(mutex_);
    spare_.push_back(std::move(q));
  }

 private:
  std::mutex mutex_;
  std::vector<CodedMatrix> spare_;
};

class DirectoryWriter {
 public:
  DirectoryWriter(const Artifact& artifact, const QuantizedFormat& format,
                  AtomicDirectory& files)
      : artifact_(artifact), format_(format), files_(files) {}

  // Everything that a reader needs is there before the weights, which go each to its
  // place, several at a time: only those that are at work are in memory.
  Status write(int64_t shard_bytes) {
    // A weight's tensors stay in one file; the artifact's own size of them decides, which
    // differs from the format's by little.
    std::map<std::string, int64_t> sizes;
    for (const Node& node : artifact_.program.nodes) {
      for (const auto& [role, name] : node.parameters) {
        const auto packed = artifact_.packed.find(name);
        const auto tensor = artifact_.tensors.find(name);
        if (packed != artifact_.packed.end()) {
          sizes[name] = packed->second.bytes();
        } else if (tensor != artifact_.tensors.end()) {
          sizes[name] = static_cast<int64_t>(tensor->second.bytes.size());
        } else {
          return error(
              StatusCode::not_found, "[", format_.name, "] ", name,
              ": every parameter must be in the artifact; found none of this name");
        }
      }
    }
    for (const auto& [name, tensor] : format_.cache_tensors)
      sizes[name] = static_cast<int64_t>(tensor.bytes.size());
    NIBBLE_RETURN_IF_ERROR(write_config());
    std::vector<Shard> shards = split_shards(sizes, shard_bytes);
    std::vector<std::pair<std::string, size_t>> weights;  // and their files
    for (size_t i = 0; i < shards.size(); ++i) {
      for (const std::string& name : shards[i].tensors) weights.emplace_back(name, i);
    }
    std::vector<Result<Parts>> outlines(weights.size(), Result<Parts>(Parts()));
    parallel_for(static_cast<int64_t>(weights.size()), [&](int64_t i) {
      const auto at = static_cast<size_t>(i);
      outlines[at] = outline_of(weights[at].first);
    });
    std::vector<std::map<std::string, StoredShape>> shapes(shards.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      if (!outlines[i].ok()) return outlines[i].status();
      for (const auto& [name, tensor] : *outlines[i])
        shapes[weights[i].second][name] = {tensor.dtype, tensor.shape};
    }
    std::map<std::string, int64_t> stored;
    std::vector<Target> targets(shards.size());
    for (size_t i = 0; i < shards.size(); ++i) {
      Target& target = targets[i];
      NIBBLE_ASSIGN_OR_RETURN(target.layout,
                              layout_safetensors(shapes[i], {{"format", "pt"}}));
      NIBBLE_ASSIGN_OR_RETURN(target.file,
                              PlacedFile::open(files_.staging() / shards[i].file));
      NIBBLE_RETURN_IF_ERROR(target.file.resize(target.layout.bytes));
      NIBBLE_RETURN_IF_ERROR(target.file.write(target.layout.head, 0));
      shards[i].tensors.clear();
      for (const auto& [name, shape] : shapes[i]) {
        shards[i].tensors.push_back(name);
        stored[name] = static_cast<int64_t>(shape.bytes());
      }
      target.shapes = std::move(shapes[i]);
    }
    const std::string index = shard_index(shards, stored);
    if (!index.empty()) NIBBLE_RETURN_IF_ERROR(files_.write(kShardIndex, index));
    std::vector<Status> outcomes(weights.size());
    SpareMatrices spare;
    parallel_for(static_cast<int64_t>(weights.size()), [&](int64_t i) {
      const auto& [name, file] = weights[static_cast<size_t>(i)];
      outcomes[static_cast<size_t>(i)] = write_weight(name, targets[file], spare);
    });
    for (Status& outcome : outcomes) NIBBLE_RETURN_IF_ERROR(std::move(outcome));
    return ok_status();
  }

 private:
  using Parts = std::map<std::string, Tensor>;
  struct Target {
    PlacedFile file;
    SafetensorsLayout layout;
    std::map<std::string, StoredShape> shapes;
  };

  const Tensor& stored_as_is(const std::string& name) const {
    const auto scale = format_.cache_tensors.find(name);
    return scale == format_.cache_tensors.end() ? artifact_.tensors.at(name)
                                                : scale->second;
  }

  // The types and shapes of what a parameter becomes.
  Result<Parts> outline_of(const std::string& name) const {
    const auto packed = artifact_.packed.find(name);
    if (packed == artifact_.packed.end()) return Parts{{name, stored_as_is(name)}};
    CodedMatrix levels;
    NIBBLE_RETURN_IF_ERROR(unpack_levels(packed->second, levels));
    return format_.tensors_of(name, levels);
  }

  Status write_weight(const std::string& name, const Target& target,
                      SpareMatrices& spare) const {
    NIBBLE_RETURN_IF_ERROR(check_cancelled(format_.name));
    Parts parts;
    CodedMatrix q = spare.take();
    const auto packed = artifact_.packed.find(name);
    if (packed == artifact_.packed.end()) {
      parts[name] = stored_as_is(name);
    } else {
      NIBBLE_RETURN_IF_ERROR(unpack(packed->second, q));
      NIBBLE_ASSIGN_OR_RETURN(parts, format_.tensors_of(name, q));
    }
    for (const auto& [part, tensor] : parts) {
      const auto shape = target.shapes.find(part);
      if (shape == target.shapes.end() || shape->second.shape != tensor.shape ||
          shape->second.dtype != tensor.dtype ||
          shape->second.bytes() != tensor.bytes.size()) {
        return error(StatusCode::internal, "[", format_.name, "] ", part,
                     ": must be as it was announced; found ", dtype_name(tensor.dtype),
                     " ", shape_text(tensor.shape), " in ", tensor.bytes.size(),
                     " bytes");
      }
      NIBBLE_RETURN_IF_ERROR(
          target.file.write(tensor.bytes, target.layout.offsets.at(part)));
    }
    spare.give(std::move(q));
    return ok_status();
  }

  Status write_config() {
    NIBBLE_ASSIGN_OR_RETURN(Json config, config_of(artifact_, format_.name));
    config.erase("rope_interleaved");  // nibble's own
    config[config.contains("torch_dtype") ? "torch_dtype" : "dtype"] =
        model_dtype(artifact_);
    config["quantization_config"] = parse_ordered_json(format_.quantization_config);
    NIBBLE_RETURN_IF_ERROR(files_.write("config.json", config.dump(2) + "\n"));
    for (const auto& [name, contents] : format_.extra_files) {
      NIBBLE_RETURN_IF_ERROR(files_.write(name, contents));
    }
    for (const auto& [name, contents] : artifact_.tokenizer) {
      NIBBLE_RETURN_IF_ERROR(files_.write(name, contents.text()));
    }
    return ok_status();
  }

  const Artifact& artifact_;
  const QuantizedFormat& format_;
  AtomicDirectory& files_;
};

Status check_extras(const std::string& tensor, const LayerScheme& layer,
                    const char* format) {
  for (const std::string* part : {&layer.extras.low_rank_a, &layer.extras.low_rank_b}) {
    if (part->empty()) continue;
    return error(StatusCode::unsupported, "[", format, "] ", tensor,
                 ": a layer must be its codes and scales alone; found ", *part,
                 "; export to the nibble format");
  }
  return ok_status();
}

}  // namespace

Status check_quantized_model(const Artifact& artifact, const ExportOptions& options,
                             const char* format) {
  const Program& program = artifact.program;
  if (options.shard_bytes < 1) {
    return error(StatusCode::invalid_argument, "[", format,
                 "] shard_bytes: must be at least 1; found ", options.shard_bytes);
  }
  NIBBLE_ASSIGN_OR_RETURN(const Json config, config_of(artifact, format));
  if (program.inputs.empty() || program.inputs[0].dtype != DType::i64 ||
      !config.contains("model_type")) {
    return error(StatusCode::unsupported, "[", format, "] ", program.architecture,
                 ": transformers must have the architecture; found one that it has "
                 "not; export to the nibble format");
  }
  for (const auto& [value, activation] : artifact.activations) {
    return error(StatusCode::unsupported, "[", format, "] value ", value,
                 ": activations must belong to a layer's input; found ",
                 to_string(activation.scheme),
                 " of a value; export to the nibble format");
  }
  if (artifact.packed.empty()) {
    return error(StatusCode::unsupported, "[", format, "] ", program.architecture,
                 ": a quantized model is required; found a float one; export to hf, or "
                 "quantize it first");
  }
  for (const Node& node : program.nodes) {
    for (const Layer& layer : layers_of(node)) {
      if (!artifact.packed.count(layer.tensor)) continue;
      if (node.op == "linear" || node.op == "moe") continue;
      return error(StatusCode::unsupported, "[", format, "] ", layer.tensor,
                   ": only linear layers can be quantized; found ",
                   to_string(artifact.packed.at(layer.tensor).scheme), " in an ", node.op,
                   " layer; give --float-embeddings, leave it float in the recipe, or "
                   "export to the "
                   "nibble format");
    }
  }
  for (const auto& [tensor, layer] : artifact.layers) {
    NIBBLE_RETURN_IF_ERROR(check_extras(tensor, layer, format));
  }
  return ok_status();
}

Result<Artifact> prepared_for_transformers(const Artifact& artifact,
                                           const ExportOptions& options,
                                           const char* format) {
  NIBBLE_ASSIGN_OR_RETURN(Artifact result, in_transformers_order(artifact, format));
  for (const Node& node : result.program.nodes) {
    const std::string& name = node.parameter("weight");
    const auto found = result.packed.find(name);
    if (!options.float_embeddings || node.op != "embedding" ||
        found == result.packed.end()) {
      continue;
    }
    const PackedTensor& packed = found->second;
    std::vector<float> values(static_cast<size_t>(packed.rows * packed.cols));
    NIBBLE_RETURN_IF_ERROR(dequantize_rows(
        packed, 0, MatrixView<float>(values.data(), packed.rows, packed.cols)));
    result.tensors[name] = make_tensor(packed.shape, std::span<const float>(values));
    result.layers.erase(name);
    result.packed.erase(found);
  }
  return result;
}

Status write_quantized_directory(const Artifact& artifact, const QuantizedFormat& format,
                                 const std::filesystem::path& directory,
                                 const ExportOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(AtomicDirectory files,
                          AtomicDirectory::create(directory, options.overwrite));
  NIBBLE_RETURN_IF_ERROR(
      DirectoryWriter(artifact, format, files).write(options.shard_bytes));
  // Each weight is compared as it is decoded, while the disk is at what was written.
  std::mutex mutex;
  std::set<std::string> checked;
  SpareMatrices spare;
  const auto check = [&](const std::string& weight, Decoded& one) -> Status {
    if (!artifact.packed.count(weight)) return ok_status();
    CodedMatrix q = spare.take();
    NIBBLE_RETURN_IF_ERROR(check_decoded_weight(artifact, weight, one, q));
    spare.give(std::move(q));
    const std::lock_guard<std::mutex> lock(mutex);
    checked.insert(weight);
    return ok_status();
  };
  NIBBLE_ASSIGN_OR_RETURN(const Decoded decoded, format.read(files.staging(), check));
  NIBBLE_RETURN_IF_ERROR(check_decoded(artifact, decoded, checked));
  if (!same_static_caches(decoded.caches, format.caches))
    return error(
        StatusCode::data_loss, "[", format.name,
        "] the scales of KV caches must be read back as they were written; found ",
        decoded.caches.size(), " caches of ", format.caches.size(), " or other scales");
  return files.commit();
}

std::string module_of(const std::string& weight) {
  const std::string_view end = ".weight";
  return weight.ends_with(end) ? weight.substr(0, weight.size() - end.size()) : weight;
}

std::set<std::string> float_modules(const Artifact& artifact) {
  std::set<std::string> modules;
  for (const Layer& layer : layers_of(artifact.program)) {
    const bool multiplies = layer.node->op == "linear" || layer.node->op == "moe";
    if (multiplies && !artifact.packed.count(layer.tensor)) modules.insert(layer.name);
  }
  // What the program has no use for (BERT's pooler) is not written; a runtime makes it anew,
  // and must make it of floats.
  for (const LedgerEntry& entry : artifact.ledger.entries) {
    if (entry.method == "ignored" && entry.tensor.ends_with(".weight"))
      modules.insert(module_of(entry.tensor));
  }
  return modules;
}

std::string model_dtype(const Artifact& artifact) {
  const Json config = parse_ordered_json(artifact.config_json);
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (config.is_object() && config.contains(key) && config[key].is_string()) {
      return config[key].get<std::string>();
    }
  }
  std::set<DType> dtypes;
  for (const Node& node : artifact.program.nodes) {
    for (const auto& [role, name] : node.parameters) {
      const auto tensor = artifact.tensors.find(name);
      if (tensor != artifact.tensors.end()) dtypes.insert(tensor->second.dtype);
    }
  }
  if (dtypes == std::set<DType>{DType::f16}) return "float16";
  return dtypes == std::set<DType>{DType::bf16} ? "bfloat16" : "float32";
}

namespace {

// The vector's memory itself.
template <class T>
Bytes bytes_of(std::vector<T> values) {
  const auto owner = std::make_shared<const std::vector<T>>(std::move(values));
  return Bytes(owner, reinterpret_cast<const std::byte*>(owner->data()),
               owner->size() * sizeof(T));
}

}  // namespace

Tensor word_tensor(std::vector<int64_t> shape, std::vector<uint32_t> words) {
  return {DType::i32, std::move(shape), bytes_of(std::move(words))};
}

Tensor word_tensor(std::vector<int64_t> shape, Words words) {
  if (words == nullptr) return {DType::i32, std::move(shape), {}};  // its shape alone
  Tensor tensor{DType::i32, std::move(shape), {}};
  const auto* data = reinterpret_cast<const std::byte*>(words.get());
  tensor.bytes = Bytes(std::move(words), data,
                       static_cast<size_t>(tensor.numel()) * sizeof(uint32_t));
  return tensor;
}

Tensor byte_tensor(DType dtype, std::vector<int64_t> shape, std::vector<uint8_t> bytes) {
  return {dtype, std::move(shape), bytes_of(std::move(bytes))};
}

Tensor code_tensor(DType dtype, std::vector<int64_t> shape, const CodedMatrix& q) {
  return {
      dtype, std::move(shape),
      Bytes(nullptr, reinterpret_cast<const std::byte*>(q.codes.data()), q.codes.size())};
}

Tensor float_tensor(Element element, std::vector<int64_t> shape,
                    const std::vector<float>& values) {
  if (element == Element::f32) return make_tensor(std::move(shape), std::span(values));
  std::vector<uint16_t> words(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    words[i] =
        element == Element::f16 ? f16_from_float(values[i]) : bf16_from_float(values[i]);
  }
  return {element == Element::f16 ? DType::f16 : DType::bf16, std::move(shape),
          Bytes::copy_of(words.data(), words.size() * sizeof(uint16_t))};
}

int unsigned_code(const QuantScheme& scheme, uint8_t code) {
  const ElementInfo& info = element_info(scheme.code);
  return info.lowest < 0 ? static_cast<int8_t>(code) + (1 << (info.bits - 1)) : code;
}

uint8_t code_lift(const QuantScheme& scheme) {
  const ElementInfo& info = element_info(scheme.code);
  return static_cast<uint8_t>(info.lowest < 0 ? 1 << (info.bits - 1) : 0);
}

int unsigned_zero(const CodedMatrix& q, int64_t index) {
  const ElementInfo& info = element_info(q.scheme.code);
  const int lift = info.lowest < 0 ? 1 << (info.bits - 1) : 0;
  if (q.offsets.empty()) return lift;
  return static_cast<int>(q.offsets[0].values[static_cast<size_t>(index)]) + lift;
}

}  // namespace nibble
