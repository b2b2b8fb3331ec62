// Proves an artifact: files, codes, scales, ledger, kernels.
//
//   files      every checksum of the manifest
//   decode     read again by a reader that shares no code with kernels/packing: every
//   code and
//              scale equal
//   scales     finite and positive; not 0 where the scheme has_signed_scales
//   ledger     every parameter accounted for, under the scheme that is stored
//   kernels    the artifact's own layers on every kernel row of this machine against
//              reference.cpp (integers bit for bit, floats within the op's tolerance)
//
// Outputs against a reference model (KL, top-1 agreement) are recipes/eval's.
// A check that could not run says why (skipped), it never counts as passed.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/scheme/decoded.h"

namespace nibble {

struct Check {
  std::string name;  // "decode"
  enum class Outcome : uint8_t { passed, failed, skipped } outcome = Outcome::skipped;
  std::string detail;  // "56 tensors, 7,077,888 codes equal"
};
struct ValidationReport {
  std::vector<Check> checks;
  bool passed() const;
};

// All checks of a nibble artifact directory. An unreadable directory is a failed check
// "files" with the reader's message, not an error.
ValidationReport validate_artifact(const std::filesystem::path& directory);

// The same of what was read and decoded in another way: `files` says what held.
ValidationReport validate_read(const Result<Artifact>& artifact,
                               const Result<Decoded>& decoded, const std::string& files);

// The checks after "files": an artifact as its reader gave it, and what the second reader
// found.
ValidationReport validate_decoded(const Artifact& artifact, const Decoded& decoded);

// A directory in another tool's format: `artifact` is what loading it gave, `decoded` what the
// format's reader finds. With a quantized reference, every code and scale is held against its
// own. The format keeps neither checksums nor a ledger, and no runtime but nibble's is run:
// what cannot be proven for that reason is skipped, and says so.
ValidationReport validate_checkpoint(const Artifact& artifact, const Decoded& decoded,
                                     const std::string& format,
                                     const Artifact* reference = nullptr);

}  // namespace nibble
