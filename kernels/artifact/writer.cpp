#include <set>

#include "kernels/artifact/artifact.h"
#include "kernels/artifact/manifest.h"
#include "kernels/artifact/safetensors.h"
#include "kernels/artifact/shards.h"
#include "kernels/artifact/stored_parts.h"
#include "kernels/base/cancel.h"
#include "kernels/base/file.h"

namespace nibble {
namespace {

using TensorMap = std::map<std::string, Tensor>;

Status add_stored(TensorMap& stored, const std::string& name, const Tensor& tensor) {
  if (stored.emplace(name, tensor).second) return ok_status();
  return error(
      StatusCode::invalid_argument, "[artifact] ", name,
      ": stored names must be unique; found another tensor of that name; a packed "
      "weight's parts are called <weight>.codes, .scale, .zero_point, .minimum");
}

// Every tensor that goes to disk: floats as they are, packed weights as their parts.
Result<TensorMap> stored_tensors(const Artifact& artifact) {
  TensorMap stored = artifact.tensors;
  for (const auto& [name, packed] : artifact.packed) {
    for (const StoredPart& part :
         stored_parts(name, packed.scheme, packed.rows, packed.cols)) {
      Tensor tensor{part.dtype, part.shape, {}};
      switch (part.kind) {
        case StoredPart::Kind::codes:
          tensor.bytes = packed.codes;
          break;
        case StoredPart::Kind::scale:
          tensor.bytes = packed.scales[part.level].values;
          break;
        case StoredPart::Kind::offset:
          tensor.bytes = packed.offsets[part.level].values;
          break;
      }
      NIBBLE_RETURN_IF_ERROR(add_stored(stored, part.name, tensor));
    }
  }
  return stored;
}

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

class Writer {
 public:
  Writer(const Artifact& artifact, AtomicDirectory& directory)
      : artifact_(artifact), directory_(directory) {}

  Status write(int64_t shard_bytes,
               const std::map<std::string, std::string>& extra_files) {
    NIBBLE_RETURN_IF_ERROR(write_weights(shard_bytes));
    NIBBLE_RETURN_IF_ERROR(write_listed(
        "config.json", artifact_.config_json.empty() ? "{}" : artifact_.config_json));
    for (const auto& [name, bytes] : artifact_.tokenizer) {
      NIBBLE_RETURN_IF_ERROR(write_listed(name, bytes.text()));
      manifest_.tokenizer.push_back(name);
    }
    NIBBLE_RETURN_IF_ERROR(describe_weights());
    manifest_.tool_version = kToolVersion;
    manifest_.program = artifact_.program;
    manifest_.activations = artifact_.activations;
    manifest_.image_mean = artifact_.image_mean;
    manifest_.image_std = artifact_.image_std;
    manifest_.ledger = artifact_.ledger;
    manifest_.provenance = artifact_.provenance;
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, print_manifest(manifest_));
    NIBBLE_RETURN_IF_ERROR(claim("manifest.json"));
    NIBBLE_RETURN_IF_ERROR(directory_.write("manifest.json", text));
    for (const auto& [name, contents] : extra_files) {
      NIBBLE_RETURN_IF_ERROR(claim(name));
      NIBBLE_RETURN_IF_ERROR(directory_.write(name, contents));
    }
    return ok_status();
  }

 private:
  Status claim(const std::string& name) {
    if (is_plain_name(name) && written_.insert(name).second) return ok_status();
    return error(StatusCode::invalid_argument, "[artifact] ", name,
                 ": a file of an artifact needs a plain name of its own; found one that ",
                 is_plain_name(name) ? "is taken" : "is not");
  }

  Status write_listed(const std::string& name, std::string_view contents) {
    NIBBLE_RETURN_IF_ERROR(claim(name));
    NIBBLE_RETURN_IF_ERROR(directory_.write(name, contents));
    manifest_.files[name] = {static_cast<int64_t>(contents.size()), sha256_hex(contents)};
    return ok_status();
  }

  Status write_weights(int64_t shard_bytes) {
    NIBBLE_ASSIGN_OR_RETURN(const TensorMap stored, stored_tensors(artifact_));
    std::map<std::string, int64_t> sizes;
    for (const auto& [name, tensor] : stored) {
      sizes[name] = static_cast<int64_t>(tensor.bytes.size());
    }
    const std::vector<Shard> shards = split_shards(sizes, shard_bytes);
    for (const Shard& shard : shards) {
      NIBBLE_RETURN_IF_ERROR(check_cancelled("artifact"));
      TensorMap tensors;
      for (const std::string& name : shard.tensors) tensors[name] = stored.at(name);
      NIBBLE_RETURN_IF_ERROR(claim(shard.file));
      const std::filesystem::path path = directory_.staging() / shard.file;
      NIBBLE_RETURN_IF_ERROR(write_safetensors(path, tensors, {{"format", "pt"}}));
      NIBBLE_RETURN_IF_ERROR(read_back(path, shard.file, tensors));
    }
    const std::string index = shard_index(shards, sizes);
    return index.empty() ? ok_status() : write_listed(kShardIndex, index);
  }

  // What counts is what the disk holds: read the shard again and compare every byte.
  Status read_back(const std::filesystem::path& path, const std::string& name,
                   const TensorMap& shard) {
    NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(path));
    manifest_.files[name] = {static_cast<int64_t>(bytes.size()),
                             sha256_hex(bytes.text())};
    NIBBLE_ASSIGN_OR_RETURN(const SafetensorsFile file, read_safetensors(path));
    for (const auto& [tensor_name, tensor] : shard) {
      const auto found = file.tensors.find(tensor_name);
      if (found == file.tensors.end() ||
          found->second.bytes.text() != tensor.bytes.text()) {
        return error(StatusCode::io_error, "[artifact] ", path.string(), ": tensor ",
                     tensor_name,
                     ": must read back as it was written; found other bytes; "
                     "is the disk sound?");
      }
      manifest_.tensors[tensor_name] = {name, dtype_name(tensor.dtype), tensor.shape,
                                        sha256_hex(tensor.bytes.text())};
    }
    return ok_status();
  }

  Status describe_weights() {
    for (const auto& [name, packed] : artifact_.packed) {
      NIBBLE_RETURN_IF_ERROR(check_cancelled("artifact"));
      NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix coded, unpack(packed));
      ManifestWeight weight;
      weight.layer = artifact_.layers.at(name);
      weight.shape = packed.shape;
      weight.rows = packed.rows;
      weight.cols = packed.cols;
      weight.scale_shift = packed.scales[0].shift;
      weight.offset_shift = packed.offsets.empty() ? 0 : packed.offsets[0].shift;
      weight.codes_sha256 = sha256_hex(
          {reinterpret_cast<const char*>(coded.codes.data()), coded.codes.size()});
      manifest_.weights[name] = std::move(weight);
    }
    return ok_status();
  }

  const Artifact& artifact_;
  AtomicDirectory& directory_;
  Manifest manifest_;
  std::set<std::string> written_;
};

}  // namespace

Status write_artifact(const Artifact& artifact, const std::filesystem::path& directory,
                      bool overwrite,
                      const std::map<std::string, std::string>& extra_files,
                      int64_t shard_bytes) {
  NIBBLE_RETURN_IF_ERROR(check_artifact(artifact));
  if (artifact.is_quantized()) {
    NIBBLE_RETURN_IF_ERROR(check_ledger(artifact.ledger, artifact.program));
  }
  NIBBLE_ASSIGN_OR_RETURN(AtomicDirectory staged,
                          AtomicDirectory::create(directory, overwrite));
  NIBBLE_RETURN_IF_ERROR(Writer(artifact, staged).write(shard_bytes, extra_files));
  return staged.commit();
}

}  // namespace nibble
