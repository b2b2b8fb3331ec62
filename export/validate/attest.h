// Writes and re-checks the part of an attestation that needs the artifact alone:
// checksums of files, codes, scales and floats, and the outputs on a fixed input.
//
// Figures are recipes/eval/attested_figures.h's. A check that cannot be made is skipped
// and says what it would need; a mismatch names the file, the tensor or the output.
#pragma once

#include <filesystem>
#include <vector>

#include "export/validate/attestation.h"
#include "export/validate/validate.h"
#include "kernels/runtime/executor.h"

namespace nibble {

// The directory's files; of a nibble artifact those that its manifest lists and the
// manifest, without reading them again; or the one file that a GGUF is.
Result<std::map<std::string, AttestedFile>> attest_files(
    const std::filesystem::path& path);

// weights and floats of an artifact, a tensor at a time; and of what a format's reader
// found.
Status attest_tensors(const Artifact& artifact, Attestation& attestation);
void attest_tensors(const Decoded& decoded, Attestation& attestation);

// Runs the model once, on seeded token ids or a seeded image. bound: 1e-4 of the largest
// output where only float sums may differ between machines, 0.05 where an activation or a
// cache is rounded and a sum may fall to the other side, 1e-6 of integer nets.
Result<AttestedOutputs> attest_outputs(Executor& model);

// Completes and writes it to attestation_path(path). attestation has its outputs and
// figures; everything else is taken from the path, the artifact and, of another tool's
// format, from what its reader found.
Status write_attestation(const std::filesystem::path& path, const std::string& format,
                         const Artifact& artifact, const Decoded* decoded,
                         Attestation attestation);

// Where a proof lies: DIR/proof.json, or FILE.proof.json of a GGUF.
std::filesystem::path attestation_path(const std::filesystem::path& artifact);

// files, weights, outputs. decoded: what the format's own reader finds, not what the
// writer packs with.
std::vector<Check> check_attested_artifact(const Attestation& attestation,
                                           const std::filesystem::path& path,
                                           const Decoded& decoded, Executor& model);
Check check_attested_files(const Attestation& attestation,
                           const std::filesystem::path& path);
// The seal, and who is said to have made it.
Check check_attested_seal(const Attestation& attestation);

}  // namespace nibble
