// A GGUF as an Artifact: quantized blocks stay as they are, under the scheme of their
// type.
//
// The ledger says of each such tensor that it was imported, of each float one in which
// type the file has it. Errors: export/gguf/gguf_model.h; invalid_argument where blocks
// do not fit nibble's packing (named).
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "kernels/artifact/artifact.h"

namespace nibble {

bool is_gguf(const Bytes& file);

// Everything but the program and the provenance. with_tokenizer: the file's own (nobody
// has given another).
Result<Artifact> read_gguf_artifact(const std::filesystem::path& path,
                                    bool with_tokenizer);

// not_found: the file has no vocabulary.
Result<std::map<std::string, Bytes>> read_gguf_tokenizer(
    const Bytes& file, const std::filesystem::path& path);

}  // namespace nibble
