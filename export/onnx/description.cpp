#include "export/onnx/description.h"

#include "export/onnx/import_tensor.h"
#include "kernels/artifact/manifest.h"
#include "kernels/artifact/stored_parts.h"
#include "kernels/base/sha256.h"
#include "onnx.pb.h"

namespace nibble {
namespace {

// Numbers before texts, so that no two graphs run into the same bytes.
class Digest {
 public:
  void number(int64_t value) { hash_.update(&value, sizeof(value)); }
  void text(std::string_view value) {
    number(static_cast<int64_t>(value.size()));
    hash_.update(value.data(), value.size());
  }
  std::string hex() { return hash_.hex(); }

 private:
  Sha256 hash_;
};

// The float tensor as the graph stores it: f64 ones become f32.
Result<Tensor> as_stored(const Tensor& tensor) {
  if (tensor.dtype != DType::f64) return tensor;
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(tensor));
  return make_tensor(tensor.shape, std::span<const float>(values));
}

}  // namespace

Result<std::string> graph_digest(const onnx::ModelProto& model,
                                 const std::filesystem::path& directory) {
  Digest digest;
  const onnx::GraphProto& graph = model.graph();
  digest.number(model.opset_import_size());
  for (const auto& set : model.opset_import()) {
    digest.text(set.domain());
    digest.number(set.version());
  }
  // No message of these has a map, so that equal ones have equal bytes.
  for (const auto* values : {&graph.input(), &graph.output()}) {
    digest.number(values->size());
    for (const auto& value : *values) digest.text(value.SerializeAsString());
  }
  digest.number(graph.node_size());
  for (const auto& node : graph.node()) digest.text(node.SerializeAsString());
  digest.number(graph.initializer_size());
  for (const auto& tensor : graph.initializer()) {
    digest.text(tensor.name());
    digest.number(tensor.data_type());
    digest.number(tensor.dims_size());
    for (const int64_t dim : tensor.dims()) digest.number(dim);
    if (tensor.name().rfind('/', 0) != 0) continue;
    if (tensor.data_location() == onnx::TensorProto::EXTERNAL) {
      NIBBLE_ASSIGN_OR_RETURN(const std::string bytes, external_bytes(tensor, directory));
      digest.text(bytes);
    } else {
      digest.text(tensor.raw_data());
    }
  }
  return digest.hex();
}

Status describe_graph(const Artifact& artifact, OnnxGraph& graph) {
  Manifest manifest;
  manifest.tool_version = kToolVersion;
  manifest.program = artifact.program;
  manifest.activations = artifact.activations;
  manifest.image_mean = artifact.image_mean;
  manifest.image_std = artifact.image_std;
  manifest.ledger = artifact.ledger;
  manifest.provenance = artifact.provenance;
  for (const auto& [name, contents] : artifact.tokenizer)
    manifest.tokenizer.push_back(name);
  const auto list = [&](const std::string& name, const char* dtype,
                        const std::vector<int64_t>& shape, const Bytes& bytes) {
    manifest.tensors[name] = {"model.onnx", dtype, shape, sha256_hex(bytes.text())};
  };
  for (const Node& node : artifact.program.nodes) {
    for (const auto& [role, name] : node.parameters) {
      const auto tensor = artifact.tensors.find(name);
      if (tensor == artifact.tensors.end() || manifest.tensors.count(name)) continue;
      NIBBLE_ASSIGN_OR_RETURN(const Tensor stored, as_stored(tensor->second));
      list(name, dtype_name(stored.dtype), stored.shape, stored.bytes);
    }
  }
  for (const auto& [name, packed] : artifact.packed) {
    const auto layer = artifact.layers.find(name);
    manifest.weights[name] = {
        .layer = layer == artifact.layers.end() ? LayerScheme{packed.scheme, {}, {}}
                                                : layer->second,
        .shape = packed.shape,
        .rows = packed.rows,
        .cols = packed.cols,
        .scale_shift = packed.scales.empty() ? 0 : packed.scales[0].shift,
        .offset_shift = packed.offsets.empty() ? 0 : packed.offsets[0].shift,
        .codes_sha256 = ""};  // the stored parts' are enough
    for (const StoredPart& part :
         stored_parts(name, packed.scheme, packed.rows, packed.cols)) {
      list(part.name, dtype_name(part.dtype), part.shape, part_bytes(packed, part));
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, print_manifest(manifest));
  NIBBLE_ASSIGN_OR_RETURN(const std::string digest, graph_digest(graph.model(), {}));
  graph.add_metadata(kManifestKey, text);
  graph.add_metadata(kConfigKey, artifact.config_json);
  graph.add_metadata(kDigestKey, digest);
  return ok_status();
}

}  // namespace nibble
