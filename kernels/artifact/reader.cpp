#include <set>

#include "kernels/artifact/artifact.h"
#include "kernels/artifact/manifest.h"
#include "kernels/artifact/safetensors.h"
#include "kernels/artifact/stored_parts.h"
#include "kernels/base/file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using TensorMap = std::map<std::string, Tensor>;

// Which tensor of a damaged shard differs; the header itself when none does.
std::string damaged_tensor(const fs::path& path, const std::string& file,
                           const Manifest& manifest) {
  if (path.extension() != ".safetensors") return "";
  const Result<SafetensorsFile> read = read_safetensors(path);
  if (!read.ok()) return " (its header does not parse)";
  for (const auto& [name, listed] : manifest.tensors) {
    if (listed.file != file) continue;
    const auto found = read->tensors.find(name);
    if (found == read->tensors.end() ||
        sha256_hex(found->second.bytes.text()) != listed.sha256) {
      return cat(", tensor ", name);
    }
  }
  return " (its header differs)";
}

Status check_files(const fs::path& directory, const Manifest& manifest) {
  for (const auto& [name, listed] : manifest.files) {
    const fs::path path = directory / name;
    std::error_code ignored;
    if (name.find('/') != std::string::npos || !fs::is_regular_file(path, ignored)) {
      return error(StatusCode::not_found, "[artifact] ", path.string(),
                   ": manifest.json lists this file; found no such file; copy the whole "
                   "directory");
    }
    NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(path));
    if (static_cast<int64_t>(bytes.size()) != listed.bytes) {
      return error(
          StatusCode::data_loss, "[artifact] ", path.string(), ": needs ", listed.bytes,
          " bytes; found ", bytes.size(), "; the file is ",
          static_cast<int64_t>(bytes.size()) < listed.bytes ? "truncated" : "damaged");
    }
    const std::string found = sha256_of(bytes);
    if (found != listed.sha256) {
      return error(StatusCode::data_loss, "[artifact] ", path.string(),
                   damaged_tensor(path, name, manifest), ": SHA-256 must be ",
                   listed.sha256, "; found ", found, "; the file was changed or damaged");
    }
  }
  return ok_status();
}

// The checked shards' tensors, each with the type and shape that the manifest says.
Result<TensorMap> read_tensors(const fs::path& directory, const Manifest& manifest) {
  std::set<std::string> shards;
  for (const auto& [name, tensor] : manifest.tensors) shards.insert(tensor.file);
  TensorMap stored;
  for (const std::string& shard : shards) {
    if (!manifest.files.count(shard)) {
      return error(StatusCode::data_loss, "[artifact] ", directory.string(),
                   ": manifest.json places tensors in ", shard,
                   ", which is not among its files");
    }
    NIBBLE_ASSIGN_OR_RETURN(SafetensorsFile file, read_safetensors(directory / shard));
    for (auto& [name, tensor] : file.tensors) {
      const auto listed = manifest.tensors.find(name);
      if (listed == manifest.tensors.end() || listed->second.file != shard ||
          listed->second.dtype != dtype_name(tensor.dtype) ||
          listed->second.shape != tensor.shape) {
        return error(StatusCode::data_loss, "[artifact] ", (directory / shard).string(),
                     ": tensor ", name, ": must be as manifest.json lists it; found ",
                     dtype_name(tensor.dtype), " ", shape_text(tensor.shape));
      }
      stored[name] = std::move(tensor);
    }
  }
  for (const auto& [name, listed] : manifest.tensors) {
    if (!stored.count(name)) {
      return error(StatusCode::data_loss, "[artifact] ",
                   (directory / listed.file).string(), ": manifest.json places tensor ",
                   name, " here; found none of that name");
    }
  }
  return stored;
}

}  // namespace

bool is_artifact_directory(const fs::path& directory) {
  std::error_code ignored;
  return fs::is_regular_file(directory / "manifest.json", ignored);
}

Result<Artifact> read_artifact(const fs::path& directory) {
  if (!is_artifact_directory(directory)) {
    return error(StatusCode::not_found, "[artifact] ", directory.string(),
                 ": an artifact directory needs manifest.json; found none");
  }
  const fs::path manifest_path = directory / "manifest.json";
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, read_text_file(manifest_path));
  NIBBLE_ASSIGN_OR_RETURN(Manifest manifest,
                          parse_manifest(text, manifest_path.string()));
  NIBBLE_RETURN_IF_ERROR(check_files(directory, manifest));

  Artifact artifact;
  NIBBLE_ASSIGN_OR_RETURN(artifact.tensors, read_tensors(directory, manifest));
  for (const auto& [name, weight] : manifest.weights) {
    NIBBLE_ASSIGN_OR_RETURN(artifact.packed[name],
                            take_packed(name, weight, artifact.tensors));
    artifact.layers[name] = weight.layer;
  }
  NIBBLE_ASSIGN_OR_RETURN(artifact.config_json,
                          read_text_file(directory / "config.json"));
  for (const std::string& name : manifest.tokenizer) {
    if (!manifest.files.count(name)) {
      return error(StatusCode::data_loss, "[artifact] ", manifest_path.string(),
                   ": tokenizer file ", name,
                   " must be among its files; found it is not");
    }
    NIBBLE_ASSIGN_OR_RETURN(artifact.tokenizer[name], map_file(directory / name));
  }
  artifact.program = std::move(manifest.program);
  artifact.activations = std::move(manifest.activations);
  artifact.image_mean = std::move(manifest.image_mean);
  artifact.image_std = std::move(manifest.image_std);
  artifact.ledger = std::move(manifest.ledger);
  artifact.provenance = std::move(manifest.provenance);
  NIBBLE_RETURN_IF_ERROR(check_artifact(artifact));
  if (artifact.is_quantized()) {
    NIBBLE_RETURN_IF_ERROR(check_ledger(artifact.ledger, artifact.program));
  }
  return artifact;
}

}  // namespace nibble
