// Proves an artifact: files, codes, scales, kernels, outputs.
//
//   files      every checksum of the manifest
//   decode     read again by a reader that shares no code with kernels/packing: every
//   code and
//              scale equal
//   scales     finite, positive, none zero
//   ledger     every parameter accounted for
//   kernels    the artifact's own layers on every kernel row of this machine against
//              reference.cpp (integers bit for bit, floats within the op's tolerance)
//   outputs    with a reference model: KL, top-1 agreement (see recipes/eval)
//
// A check that could not run says why (skipped), it never counts as passed.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"

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

// Structural checks of a nibble artifact directory. An unreadable directory is a failed
// check "files" with the reader's message, not an error.
ValidationReport validate_artifact(const std::filesystem::path& directory);

}  // namespace nibble
