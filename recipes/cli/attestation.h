// What validate and evaluate do with proof.json: check one, and write one beside a model.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "export/validate/attest.h"
#include "recipes/cli/command_line.h"

namespace nibble {

// Every check of `nibble validate --attestation`. readable: the artifact's own checks
// passed; else its files alone are held against the proof. --reference, --text and
// --dataset are used where they are given. not_found: no proof.json. data_loss: it is not
// one.
Result<std::vector<Check>> check_attestation(const CommandLine& line, bool readable);

// proof.json of the model at ARTIFACT or MODEL, which the executor runs; what an earlier
// one of the same weights says of other measurements stays. measured: with its data.
Status attest_beside(const std::filesystem::path& path, const LoadOptions& options,
                     const std::optional<AttestedMeasurement>& measured);

}  // namespace nibble
