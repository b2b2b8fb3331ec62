// An Artifact of a graph that describes itself (description.h).
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "export/formats/readers.h"
#include "export/levels.h"
#include "export/onnx/description.h"
#include "export/onnx/import_tensor.h"
#include "kernels/artifact/manifest.h"
#include "kernels/artifact/stored_parts.h"
#include "kernels/base/file.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/runtime/integer_node.h"
#include "onnx.pb.h"

namespace nibble {
namespace {

bool is_signed(Element element) { return element_info(element).lowest < 0; }

// The values of one level in the layer's own blocks, of those that the graph has; false:
// the graph's differ within a block, or are not values of the level's element.
template <class At>
bool level_of(const ScaleLevel& level, const CodedMatrix& read, At at,
              CodedLevel* result) {
  const LevelShape shape = level_shape(level.block, read.rows, read.cols);
  const auto count = static_cast<size_t>(shape.rows * shape.cols);
  *result = {shape.rows, shape.cols, std::vector<float>(count), 0};
  std::vector<bool> known(count);
  for (int64_t r = 0; r < read.rows; ++r) {
    for (int64_t c = 0; c < read.cols;) {
      const auto i =
          static_cast<size_t>(level_index(level.block, read.rows, read.cols, r, c));
      const float value = at(r, c);
      if (known[i] && result->values[i] != value) return false;
      if (!known[i] && round_to_element(level.element, value) != value) return false;
      result->values[i] = value;
      known[i] = true;
      c = std::min(cell_end(read.scheme, read.cols, r, c),
                   run_end(level.block, read.cols, r, c));
    }
  }
  return true;
}

// What the graph holds in the scheme that the layer had; nothing when it is not of that
// scheme any more.
std::optional<CodedMatrix> in_scheme(const CodedMatrix& read, const QuantScheme& scheme) {
  if (read.scheme == scheme) return read;
  const bool plain = scheme.scales.size() == 1 && !scheme.scales[0].shifted &&
                     scheme.offset != OffsetKind::minimum && scheme.offsets.size() <= 1 &&
                     (scheme.offsets.empty() || !scheme.offsets[0].shifted);
  const bool whole = element_info(scheme.code).kind == ElementKind::integer;
  if (!plain || (!whole && read.scheme.code != scheme.code)) return {};
  CodedMatrix q;
  q.scheme = scheme;
  q.rows = read.rows;
  q.cols = read.cols;
  q.codes = read.codes;
  // MatMulNBits counts signed codes from -2^(bits - 1).
  const int bits = element_info(read.scheme.code).bits;
  const int shift = whole && is_signed(scheme.code) && !is_signed(read.scheme.code)
                        ? 1 << (bits - 1)
                        : 0;
  for (uint8_t& code : q.codes) {
    if (!whole) break;
    const int value =
        (is_signed(read.scheme.code) ? static_cast<int8_t>(code) : code) - shift;
    if (value < code_lowest(scheme) || value > code_highest(scheme)) return {};
    code = static_cast<uint8_t>(value);
  }
  const auto scale = [&](int64_t r, int64_t c) { return scale_at(read, r, c); };
  const auto zero = [&](int64_t r, int64_t c) {
    return offset_at(read, r, c) - static_cast<float>(shift);
  };
  q.scales.resize(1);
  if (!level_of(scheme.scales[0], read, scale, &q.scales[0])) return {};
  if (scheme.offset == OffsetKind::zero_point) {
    q.offsets.resize(1);
    if (!level_of(scheme.offsets[0], read, zero, &q.offsets[0])) return {};
    return q;
  }
  for (int64_t r = 0; r < q.rows; ++r) {
    for (int64_t c = 0; c < q.cols; c = cell_end(read.scheme, q.cols, r, c)) {
      if (zero(r, c) != 0) return {};
    }
  }
  return q;
}

// A float whose code is this one (integer_node.h): the nearest may be one place beside.
float bias_of(int32_t code, float input_scale, float weight_scale) {
  const float multiplier = input_scale * weight_scale;
  const auto nearest = static_cast<float>(static_cast<double>(code) * multiplier);
  float up = nearest, down = nearest;
  for (int i = 0; i < 4; ++i) {
    if (integer_bias(up, input_scale, weight_scale) == code) return up;
    if (integer_bias(down, input_scale, weight_scale) == code) return down;
    up = std::nextafterf(up, std::numeric_limits<float>::infinity());
    down = std::nextafterf(down, -std::numeric_limits<float>::infinity());
  }
  return nearest;
}

class DescribedModel {
 public:
  DescribedModel(std::filesystem::path file, const onnx::ModelProto& model)
      : file_(std::move(file)), model_(model) {}

  Result<Artifact> read(Manifest manifest, std::string config) {
    listed_ = std::move(manifest.tensors);
    result_.program = std::move(manifest.program);
    result_.config_json = std::move(config);
    result_.activations = std::move(manifest.activations);
    result_.image_mean = std::move(manifest.image_mean);
    result_.image_std = std::move(manifest.image_std);
    result_.ledger = std::move(manifest.ledger);
    result_.provenance = std::move(manifest.provenance);
    NIBBLE_RETURN_IF_ERROR(check_program(result_.program));
    NIBBLE_ASSIGN_OR_RETURN(decoded_, read_onnx_file(file_));
    for (const auto& [name, weight] : manifest.weights) {
      NIBBLE_RETURN_IF_ERROR(add_packed(name, weight));
    }
    for (const Node& node : result_.program.nodes) {
      for (const auto& [role, name] : node.parameters) {
        if (!result_.packed.count(name)) NIBBLE_RETURN_IF_ERROR(add_float(node, name));
      }
    }
    for (const std::string& name : manifest.tokenizer) {
      const auto path = file_.parent_path() / name;
      std::error_code ignored;
      if (name.find('/') != std::string::npos || !std::filesystem::exists(path, ignored))
        continue;
      NIBBLE_ASSIGN_OR_RETURN(result_.tokenizer[name], map_file(path));
    }
    if (changed_) {
      NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(file_));
      result_.provenance.sources[file_.filename().string()] = sha256_of(bytes);
    }
    NIBBLE_RETURN_IF_ERROR(check_artifact(result_));
    return std::move(result_);
  }

 private:
  template <class... Parts>
  Status damaged(const std::string& where, const Parts&... parts) const {
    return error(StatusCode::data_loss, "[onnx] ", where, ": ", parts...,
                 "; export the model again");
  }

  bool as_listed(const std::string& name, const Bytes& bytes) const {
    const auto found = listed_.find(name);
    return found != listed_.end() && found->second.sha256 == sha256_hex(bytes.text());
  }

  // What the ledger says of a parameter is not true of what the graph holds. packed: its
  // codes, whose method and errors then say nothing.
  void note(const std::string& name, const PackedTensor* packed,
            const std::string& text) {
    changed_ = true;
    for (LedgerEntry& entry : result_.ledger.entries) {
      if (entry.tensor != name) continue;
      entry.note = cat(entry.note, entry.note.empty() ? "" : "; ", text);
      if (packed == nullptr) continue;
      entry.scheme = to_string(packed->scheme);
      entry.method = kImported;
      entry.bits = 8.0 * static_cast<double>(packed->bytes());
      entry.error = 0;
      entry.output_error = -1;
    }
  }

  Status add_packed(const std::string& name, const ManifestWeight& weight) {
    const auto found = decoded_.coded.find(name);
    if (found == decoded_.coded.end()) {
      return damaged(name, "codes of the scheme ", to_string(weight.layer.weight),
                     " were required; the graph holds none of this name");
    }
    CodedMatrix read = std::move(found->second);
    decoded_.coded.erase(found);
    if (read.rows != weight.rows || read.cols != weight.cols) {
      return damaged(name, "codes [", weight.rows, ", ", weight.cols,
                     "] were required; found [", read.rows, ", ", read.cols, "]");
    }
    LayerScheme& layer = result_.layers[name];
    layer = weight.layer;
    std::optional<CodedMatrix> q = in_scheme(read, weight.layer.weight);
    if (!q) layer.weight = read.scheme;
    PackedTensor& packed = result_.packed[name];
    NIBBLE_ASSIGN_OR_RETURN(packed, pack(q ? *q : read, weight.shape));
    bool same = q.has_value();
    for (const StoredPart& part :
         stored_parts(name, packed.scheme, packed.rows, packed.cols)) {
      same = same && as_listed(part.name, part_bytes(packed, part));
    }
    if (!same) {
      note(name, &packed,
           q ? "the graph holds other codes or scales than were exported"
             : cat("from ONNX; it was ", to_string(weight.layer.weight)));
    }
    const std::string& order = layer.extras.permutation;
    return order.empty() ? ok_status() : add_permutation(name, order);
  }

  Status add_permutation(const std::string& weight, const std::string& name) {
    for (const auto& tensor : model_.graph().initializer()) {
      if (tensor.name() != "/" + name) continue;
      NIBBLE_ASSIGN_OR_RETURN(result_.tensors[name],
                              tensor_of(tensor, file_.parent_path()));
      return ok_status();
    }
    return damaged(weight, "the order of its columns, /", name,
                   ", was required; the graph holds none of this name");
  }

  Status add_float(const Node& node, const std::string& name) {
    if (result_.tensors.count(name)) return ok_status();
    const auto found = decoded_.floats.find(name);
    if (found == decoded_.floats.end()) {
      return damaged(name, "the parameter of ", node.name,
                     " was required; the graph holds none of this name");
    }
    Tensor tensor = found->second;
    if (tensor.dtype == DType::i32) {
      NIBBLE_ASSIGN_OR_RETURN(tensor, float_bias(node, name, tensor));
      if (!as_listed(name, tensor.bytes)) {
        note(name, nullptr, "rounded to the codes that the exported graph holds");
      }
    } else if (!as_listed(name, tensor.bytes)) {
      note(name, nullptr, "the graph holds other values than were exported");
    }
    result_.tensors[name] = std::move(tensor);
    return ok_status();
  }

  // Codes at input scale times weight scale -> the floats that have these codes.
  Result<Tensor> float_bias(const Node& node, const std::string& name,
                            const Tensor& codes) {
    const auto packed = result_.packed.find(node.parameter("weight"));
    const auto layer = result_.layers.find(node.parameter("weight"));
    const auto value = result_.activations.find(node.inputs.front());
    const ActivationScheme* input = layer != result_.layers.end() && layer->second.input
                                        ? &*layer->second.input
                                    : value != result_.activations.end() ? &value->second
                                                                         : nullptr;
    if (packed == result_.packed.end() || input == nullptr) {
      return damaged(name, "int32 codes of a bias need a quantized weight and input; ",
                     node.name, " has none");
    }
    CodedMatrix levels;
    NIBBLE_RETURN_IF_ERROR(unpack_levels(packed->second, levels));
    const std::vector<float>& scales = levels.scales.front().values;
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> integers, to_int32(codes));
    if (scales.size() != 1 && scales.size() != integers.size()) {
      return damaged(name, scales.size(), " values were required; found ",
                     integers.size());
    }
    std::vector<float> values;
    for (size_t i = 0; i < integers.size(); ++i) {
      values.push_back(
          bias_of(integers[i], input->scale, scales[scales.size() == 1 ? 0 : i]));
    }
    return make_tensor(codes.shape, std::span<const float>(values));
  }

  std::filesystem::path file_;
  const onnx::ModelProto& model_;
  Decoded decoded_;
  std::map<std::string, ManifestTensor> listed_;
  Artifact result_;
  bool changed_ = false;
};

}  // namespace

Result<DescribedOnnx> read_described(const std::filesystem::path& file) {
  NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(file));
  onnx::ModelProto model;
  DescribedOnnx result;
  if (bytes.size() > static_cast<size_t>(std::numeric_limits<int>::max()) ||
      !model.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return result;  // import_onnx says what is wrong
  }
  std::map<std::string, std::string> metadata;
  for (const auto& entry : model.metadata_props()) metadata[entry.key()] = entry.value();
  if (!metadata.count(kManifestKey) || !metadata.count(kDigestKey)) return result;
  NIBBLE_ASSIGN_OR_RETURN(const std::string digest,
                          graph_digest(model, file.parent_path()));
  result.changed = digest != metadata[kDigestKey];
  if (result.changed) return result;
  NIBBLE_ASSIGN_OR_RETURN(
      Manifest manifest,
      parse_manifest(metadata[kManifestKey], cat(file.string(), ", ", kManifestKey)));
  NIBBLE_ASSIGN_OR_RETURN(
      result.artifact,
      DescribedModel(file, model).read(std::move(manifest), metadata[kConfigKey]));
  return result;
}

}  // namespace nibble
