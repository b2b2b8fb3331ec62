#include "export/assemble.h"

#include <algorithm>
#include <set>

#include "export/huggingface/static_caches.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "kernels/packing/packed_tensor.h"

namespace nibble {
namespace {

constexpr const char* kQuantMethods[] = {"compressed-tensors", "gptq", "awq",
                                         "bitsandbytes",       "fp8",  "modelopt"};

std::set<std::string> parameters_of(const Program& program) {
  std::set<std::string> names;
  for (const Node& node : program.nodes) {
    for (const auto& [role, tensor] : node.parameters) names.insert(tensor);
  }
  return names;
}

std::string dtype_text(DType dtype) {
  std::string text = dtype_name(dtype);
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

void account(const std::set<std::string>& parameters, const std::string& format,
             const Decoded& decoded, Artifact& artifact) {
  std::vector<LedgerEntry>& entries = artifact.ledger.entries;
  for (const std::string& name : parameters) {
    LedgerEntry entry;
    entry.tensor = name;
    const auto packed = artifact.packed.find(name);
    const auto tensor = artifact.tensors.find(name);
    if (packed != artifact.packed.end()) {
      entry.scheme = to_string(packed->second.scheme);
      entry.method = kImported;
      entry.note = cat("from ", format);
      entry.parameters = packed->second.rows * packed->second.cols;
      entry.bits = 8.0 * static_cast<double>(packed->second.bytes());
    } else if (tensor != artifact.tensors.end()) {
      entry.scheme = dtype_text(tensor->second.dtype);
      entry.method = "float";
      entry.reason = cat("float in the ", format, " checkpoint");
      entry.parameters = tensor->second.numel();
      entry.bits = 8.0 * static_cast<double>(tensor->second.bytes.size());
    } else {
      continue;  // check_artifact names it
    }
    entries.push_back(std::move(entry));
  }
  for (const auto& [name, reason] : decoded.ignored) {
    LedgerEntry entry;
    entry.tensor = name;
    entry.scheme = "none";
    entry.method = "ignored";
    entry.reason = reason;
    entries.push_back(std::move(entry));
  }
  std::sort(
      entries.begin(), entries.end(),
      [](const LedgerEntry& a, const LedgerEntry& b) { return a.tensor < b.tensor; });
}

}  // namespace

Status assemble(Decoded decoded, const std::string& format, Artifact& artifact) {
  const std::set<std::string> parameters = parameters_of(artifact.program);
  for (auto& [name, q] : decoded.coded) {
    if (!parameters.count(name)) {
      return error(StatusCode::invalid_argument, "[", format, "] ", name, ": ",
                   artifact.program.architecture,
                   " has no such parameter; found its codes in the checkpoint; do "
                   "config.json and the weights belong together?");
    }
    Result<PackedTensor> packed = pack(q, {q.rows, q.cols});
    if (!packed.ok()) {
      return error(packed.status().code(), "[", format, "] ", name, ": ",
                   packed.status().message());
    }
    LayerScheme& layer = artifact.layers[name];
    layer.weight = q.scheme;
    artifact.packed[name] = std::move(packed).value();
    q = {};  // one tensor at a time: codes take a byte each
    if (const auto input = decoded.inputs.find(name); input != decoded.inputs.end()) {
      layer.input = input->second;
    }
    const auto order = decoded.permutations.find(name);
    if (order == decoded.permutations.end()) continue;
    layer.extras.permutation = name + ".permutation";
    artifact.tensors[layer.extras.permutation] =
        make_tensor({static_cast<int64_t>(order->second.size())},
                    std::span<const int32_t>(order->second));
  }
  NIBBLE_RETURN_IF_ERROR(set_static_caches(decoded.caches, artifact.program));
  account(parameters, format, decoded, artifact);
  artifact.provenance.recipe = cat("format: ", format, "\n");
  return ok_status();
}

Result<const Exporter*> find_quant_method(const std::string& quant_method) {
  std::string known;
  for (const char* name : kQuantMethods) {
    if (quant_method == name) return find_exporter(name);
    known += cat(known.empty() ? "" : ", ", name);
  }
  return error(StatusCode::unsupported,
               "[models] config.json: quant_method must be one of ", known, "; found `",
               quant_method, "`; give the float checkpoint");
}

Result<const Exporter*> find_format(const std::filesystem::path& path) {
  if (is_artifact_directory(path)) return find_exporter("nibble");
  std::error_code ignored;
  if (std::filesystem::exists(path / "model.gguf", ignored)) return find_exporter("gguf");
  if (std::filesystem::is_regular_file(path, ignored)) {
    const Result<Bytes> file = map_file(path);
    if (file.ok() && file->text().substr(0, 4) == "GGUF") return find_exporter("gguf");
  }
  const Result<std::string> text = read_text_file(path / "config.json");
  const nlohmann::json config = parse_json(text.ok() ? *text : "");
  if (config.is_object() && config.contains("quantization_config")) {
    const nlohmann::json& quantization = config["quantization_config"];
    for (const char* key : {"quant_method", "method"}) {
      if (quantization.is_object() && quantization.contains(key) &&
          quantization[key].is_string()) {
        return find_quant_method(quantization[key].get<std::string>());
      }
    }
    return find_quant_method("?");
  }
  return error(StatusCode::unsupported, "[nibble] ", path.string(),
               ": a nibble artifact, a GGUF or a quantized Hugging Face directory is "
               "required; found none of these");
}

}  // namespace nibble
