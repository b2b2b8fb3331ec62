// A model that can be used, float or quantized: program, tensors, schemes, tokenizer,
// ledger.
//
// Where makers (ptq, qat) and translators (export) meet. A float checkpoint is an
// Artifact whose layers are plain Tensors. On disk an artifact is a Hugging Face style
// directory with a manifest.json; FORMAT.md says it byte by byte.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/artifact/ledger.h"
#include "kernels/base/tensor.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/program/program.h"
#include "kernels/scheme/layer_scheme.h"

namespace nibble {

// Where an artifact came from. Nothing here depends on the time or the machine's paths:
// equal inputs give equal bytes.
struct Provenance {
  std::map<std::string, std::string> sources;  // file name -> SHA-256, of the checkpoint
  std::string recipe;                          // the resolved recipe, as YAML text
  std::string calibration;  // what it was calibrated on: name, sequences, tokens, SHA-256
  std::string tool_version;
  bool operator==(const Provenance&) const = default;
};

struct Artifact {
  Program program;
  std::string config_json;  // the checkpoint's config.json ("{}" when it had none)
  std::map<std::string, Tensor> tensors;       // float parameters, by checkpoint name
  std::map<std::string, PackedTensor> packed;  // quantized weights, by checkpoint name
  std::map<std::string, LayerScheme> layers;   // for every key of `packed`
  std::map<std::string, ActivationScheme> activations;  // by the Program's value name
  // Image preprocessing: (x / 255 - mean) / std per channel; empty for language models.
  std::vector<float> image_mean, image_std;
  std::map<std::string, Bytes> tokenizer;  // file name -> contents (tokenizer.json, ...)
  Ledger ledger;                           // empty for a float checkpoint
  Provenance provenance;

  bool is_quantized() const { return !packed.empty(); }
  int64_t weight_bytes() const;  // tensors and packed parts that the program names
};

// Every parameter of the program is in tensors or packed with the shape that the
// program's graph needs, finite, and scales positive (not 0 where the
// scheme has_signed_scales; kImported ones: finite).
// invalid_argument / out_of_range / not_found, naming the tensor, what was required and
// what was found. NaN: out_of_range.
Status check_artifact(const Artifact& artifact);

// Reads a nibble artifact directory; checks every checksum, then check_artifact and, of a
// quantized one, check_ledger. data_loss: a flipped bit or truncated file (names file and
// tensor). not_found: manifest.json or a listed file is missing.
Result<Artifact> read_artifact(const std::filesystem::path& directory);
bool is_artifact_directory(const std::filesystem::path& directory);

// Writes files, syncs, and renames the directory into place. already_exists unless
// overwrite. invalid_argument, out_of_range, failed_precondition: check_artifact and
// check_ledger. extra_files: written beside (report.html ...), not listed in the
// manifest. shard_bytes: weights beyond it go to several files with an index. complete: called
// with the finished directory before it gets its name; may add files, its error undoes all.
inline constexpr int64_t kShardBytes = 5'000'000'000;
Status write_artifact(const Artifact& artifact, const std::filesystem::path& directory,
                      bool overwrite,
                      const std::map<std::string, std::string>& extra_files = {},
                      int64_t shard_bytes = kShardBytes,
                      const std::function<Status(const std::filesystem::path&)>& complete = {});

inline constexpr const char* kToolVersion = "nibble 0.1.0";

}  // namespace nibble
