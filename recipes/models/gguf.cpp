#include "recipes/models/gguf.h"

#include "export/gguf/gguf_model.h"
#include "kernels/ops/linear/linear.h"

namespace nibble {
namespace {

LedgerEntry entry_of(const GgufParameter& parameter) {
  LedgerEntry entry;
  entry.tensor = parameter.name;
  entry.scheme = to_string(parameter.tensor.type->scheme);
  entry.parameters = 1;
  for (const int64_t size : parameter.shape) entry.parameters *= size;
  return entry;
}

}  // namespace

Result<Artifact> read_gguf_artifact(const std::filesystem::path& path,
                                    bool with_tokenizer) {
  NIBBLE_ASSIGN_OR_RETURN(const GgufModel model, open_gguf_model(path));
  Artifact artifact;
  artifact.config_json = model.config_json;
  bool quantized = false;
  for (const GgufParameter& parameter : model.parameters)
    quantized = quantized || !parameter.is_float();
  for (const GgufParameter& parameter : model.parameters) {
    LedgerEntry entry = entry_of(parameter);
    const std::string type = parameter.tensor.type->name;
    if (parameter.is_float()) {
      NIBBLE_ASSIGN_OR_RETURN(Tensor tensor, read_floats(parameter));
      entry.method = "float";
      entry.reason = cat("stored as ", type, " in the GGUF");
      entry.bits = 8.0 * static_cast<double>(tensor.bytes.size());
      artifact.tensors[parameter.name] = std::move(tensor);
    } else {
      NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, read_codes(parameter));
      NIBBLE_ASSIGN_OR_RETURN(PackedTensor packed, pack(q, parameter.shape));
      entry.method = kImported;
      entry.note = cat(type, " of a GGUF");
      entry.bits = 8.0 * static_cast<double>(packed.bytes());
      const LinearKernel* kernel =
          select_linear(packed.scheme, packed.cols, LinearActivation::f32);
      entry.kernel = kernel == nullptr ? "" : kernel->name;
      artifact.layers[parameter.name].weight = packed.scheme;
      artifact.packed[parameter.name] = std::move(packed);
    }
    // A float checkpoint has no ledger.
    if (quantized) artifact.ledger.entries.push_back(std::move(entry));
  }
  if (!with_tokenizer) return artifact;
  NIBBLE_ASSIGN_OR_RETURN(artifact.tokenizer, gguf_tokenizer_files(model.file.metadata));
  return artifact;
}

Result<std::map<std::string, Bytes>> read_gguf_tokenizer(
    const Bytes& file, const std::filesystem::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(const GgufMetadata metadata, read_gguf_metadata(file.text()));
  NIBBLE_ASSIGN_OR_RETURN(auto files, gguf_tokenizer_files(metadata));
  if (!files.empty()) return files;
  return error(StatusCode::not_found, "[models] ", path.string(),
               ": a GGUF with tokenizer.ggml.model and tokens was required; found none");
}

}  // namespace nibble
