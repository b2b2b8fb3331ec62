// Runs an artifact's own layers on every kernel row that this machine has and compares
// with the reference: integer results bit for bit, floats within the tolerance that the
// op states.
//
// Inputs are seeded, so two runs check the same numbers.
// failed_precondition: a row disagrees (names layer, row, output, both numbers).
#pragma once

#include <map>
#include <string>

#include "kernels/artifact/artifact.h"

namespace nibble {

struct KernelCheck {
  std::map<std::string, int64_t> rows;  // kernel row -> layers that it ran
};
Result<KernelCheck> check_layer_kernels(const Artifact& artifact);

}  // namespace nibble
