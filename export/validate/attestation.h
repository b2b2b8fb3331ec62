// proof.json: what is claimed of an artifact, in a form that anybody can check again.
//
//   files      bytes and SHA-256 of every file of the directory but proof.json
//   weights    of each quantized weight: its scheme, SHA-256 of its codes (one a byte,
//   row by
//              row) and of each level's values (float32, row by row, then the shift)
//   floats     of every other tensor: dtype and SHA-256 of its bytes
//   outputs    what the model gives on an input that is part of the file
//   measured   figures with their 95 % intervals; what they were measured on, by the
//   SHA-256
//              of its tokens or pixels; the values a sequence from which means and
//              intervals follow without the data
//
// Checksums say that nothing changed since the file was written; they are no signature:
// who can change the artifact can write another proof.json. Its own SHA-256, published
// elsewhere, ties it down; and figures are proven by measuring them again.
//
// parse_attestation(print_attestation(a)) == a, its bytes the same on every machine.
// data_loss: a field is missing or of a wrong type (named). unsupported: another version.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

inline constexpr const char* kAttestationFile = "proof.json";
inline constexpr int64_t kAttestationVersion = 1;

struct AttestedFile {
  int64_t bytes = 0;
  std::string sha256;
  bool operator==(const AttestedFile&) const = default;
};

struct AttestedWeight {
  std::string scheme;
  std::string codes;  // SHA-256
  std::map<std::string, std::string>
      levels;  // scale, scale1, zero_point, minimum -> SHA-256
  bool operator==(const AttestedWeight&) const = default;
};

struct AttestedFloat {
  std::string dtype, sha256;
  bool operator==(const AttestedFloat&) const = default;
};

// The last position's logits of `ids`; of an encoder its first embedding, of an image
// model the logits of a seeded image (ids empty).
struct AttestedOutputs {
  std::vector<int32_t> ids;
  std::map<int64_t, float> values;         // index -> value, some of them spread over all
  double largest = 0;                      // magnitude of all outputs
  double bound = 0;                        // allowed difference as a share of `largest`
  std::map<std::string, int64_t> kernels;  // row -> layers that it served
  bool operator==(const AttestedOutputs&) const = default;
};

struct AttestedFigure {
  double value = 0;
  std::optional<std::array<double, 2>> ci95;
  bool operator==(const AttestedFigure&) const = default;
};

// What a measurement was made on: enough to cut the same sequences from the same file.
struct AttestedData {
  std::string kind;  // "text", "sentences", "images"
  std::string file;  // or folder: its name
  std::string description;
  std::string sha256;  // of token ids and lengths, or of pixels and labels
  int64_t first = 0, count = 0;
  int64_t length = 0, stride = 0, min_chars = 0;
  bool per_line = false, append_eos = false;
  bool operator==(const AttestedData&) const = default;
};

struct AttestedMeasurement {
  AttestedData data;
  std::string compute, kv;  // "float", "int8", "integer"; the caches'
  std::map<std::string, std::string> reference;  // its files -> SHA-256; empty: none
  std::map<std::string, AttestedFigure> figures;
  // A value a sequence (image): nll, kl, reference_nll, predictions; right, agrees;
  // cosine.
  std::map<std::string, std::vector<double>> values;
  bool operator==(const AttestedMeasurement&) const = default;
};

struct Attestation {
  std::string tool_version;
  std::string format;  // "nibble", or the exporter's that reads it
  std::map<std::string, std::string> sources;  // of the checkpoint: file -> SHA-256
  std::string recipe, calibration;
  std::map<std::string, AttestedFile> files;
  std::map<std::string, AttestedWeight> weights;
  std::map<std::string, AttestedFloat> floats;
  AttestedOutputs outputs;
  std::vector<AttestedMeasurement> measured;
  // Not printed: is the text's own checksum right? Reading goes on where it is not, so
  // that what was changed can be named.
  bool sealed = true;
  bool operator==(const Attestation&) const = default;
};

// invalid_argument: a text that is not UTF-8. out_of_range: a number that is not finite.
Result<std::string> print_attestation(const Attestation& attestation);
Result<Attestation> parse_attestation(std::string_view text, const std::string& path);

}  // namespace nibble
