// Reads a Hugging Face directory of floats: every tensor that model.safetensors or its
// index names, and config.json.
#include "export/formats/readers.h"
#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"

namespace nibble {

Result<Decoded> read_hf(const std::filesystem::path& directory) {
  Decoded decoded;
  NIBBLE_ASSIGN_OR_RETURN(decoded.config_json, read_text_file(directory / "config.json"));
  NIBBLE_ASSIGN_OR_RETURN(decoded.floats, read_sharded_safetensors(directory, nullptr));
  return decoded;
}

}  // namespace nibble
