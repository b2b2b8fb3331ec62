// Makes an Artifact of what a format's reader found: codes packed, a scheme for each
// layer, a ledger that accounts for every parameter of the program.
//
// decoded holds codes, inputs and permutations; artifact has its program, and the float
// tensors that the program names. A layer's permutation becomes the i32 tensor
// "<weight>.permutation": column c of the codes is column permutation[c] of the weight.
//
// invalid_argument: codes for which the program has no parameter (named), or of a shape
// that is not the layer's (check_artifact, which the caller runs). unsupported: a
// quant_method that no reader knows (lists those that are known).
#pragma once

#include <filesystem>
#include <string>

#include "export/exporter.h"

namespace nibble {

// format: the exporter's name, which the ledger notes of each imported layer.
Status assemble(Decoded decoded, const std::string& format, Artifact& artifact);

// The exporter whose reader knows what lies at path: a nibble artifact, a GGUF (the file, or a
// directory with model.gguf), a Hugging Face directory with a quantization_config. unsupported:
// none does.
Result<const Exporter*> find_format(const std::filesystem::path& path);

// The reader of a Hugging Face directory by its quantization_config's quant_method.
Result<const Exporter*> find_quant_method(const std::string& quant_method);

}  // namespace nibble
