// manifest.json of an artifact directory as a value: what FORMAT.md describes, field by
// field.
//
// parse_manifest(print_manifest(m)) == m. data_loss: the text does not have its own
// checksum, or a field is missing or of a wrong type (named). unsupported: another format
// version.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/artifact/artifact.h"

namespace nibble {

inline constexpr int64_t kArtifactVersion = 1;

// One packed weight: its meaning, and where in the safetensors its parts are.
struct ManifestWeight {
  LayerScheme layer;
  std::vector<int64_t> shape;  // the weight's own, e.g. [out, in, kh, kw]
  int64_t rows = 0, cols = 0;
  float scale_shift = 0, offset_shift = 0;  // of the innermost levels, where marked "+o"
  std::string codes_sha256;  // of the rows * cols unpacked codes, one a byte
  bool operator==(const ManifestWeight&) const = default;
};

struct ManifestTensor {
  std::string file;
  std::string dtype;  // as safetensors names it
  std::vector<int64_t> shape;
  std::string sha256;  // of the stored bytes
  bool operator==(const ManifestTensor&) const = default;
};

struct ManifestFile {
  int64_t bytes = 0;
  std::string sha256;
  bool operator==(const ManifestFile&) const = default;
};

struct Manifest {
  std::string tool_version;  // that wrote the directory
  Program program;
  std::map<std::string, ManifestWeight> weights;  // by checkpoint name
  std::map<std::string, ActivationScheme> activations;
  std::vector<float> image_mean, image_std;
  Ledger ledger;
  Provenance provenance;
  std::vector<std::string> tokenizer;             // file names
  std::map<std::string, ManifestTensor> tensors;  // every stored tensor, by stored name
  std::map<std::string, ManifestFile> files;      // every file but manifest.json
  bool operator==(const Manifest&) const = default;
};

// invalid_argument: a text that is not UTF-8. out_of_range: a figure that is not finite.
Result<std::string> print_manifest(const Manifest& manifest);
Result<Manifest> parse_manifest(std::string_view text, const std::string& path);

// One layer of an artifact that is being written (artifact_writer.h).
struct JournalEntry {
  ManifestWeight weight;
  LedgerEntry ledger;                       // its tensor names the weight
  std::map<std::string, std::string> sha256;  // of the stored parts, by name
  bool operator==(const JournalEntry&) const = default;
};
// A line with its own checksum before it. data_loss: the line is not whole.
Result<std::string> print_journal_line(const JournalEntry& entry);
Result<JournalEntry> parse_journal_line(std::string_view line);

// How the parts of a packed weight are called: "X.codes"; "X.scale", "X.scale1" ...;
// "X.zero_point" or "X.minimum", then with 1, 2 ...
std::string codes_name(const std::string& weight);
std::string scale_name(const std::string& weight, size_t level);
std::string offset_name(const std::string& weight, OffsetKind kind, size_t level);

}  // namespace nibble
