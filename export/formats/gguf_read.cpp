// Reads a GGUF decoder independently of kernels/packing: blocks are decoded by
// export/ggml/unpack.cpp, which knows nothing of how they were packed.
#include "export/formats/readers.h"
#include "export/gguf/gguf_model.h"

namespace nibble {

Result<Decoded> read_gguf(const std::filesystem::path& path) {
  std::error_code ignored;
  const bool folder = std::filesystem::is_directory(path, ignored);
  NIBBLE_ASSIGN_OR_RETURN(const GgufModel model,
                          open_gguf_model(folder ? path / "model.gguf" : path));
  Decoded decoded;
  decoded.config_json = model.config_json;
  for (const GgufParameter& parameter : model.parameters) {
    if (parameter.is_float()) {
      NIBBLE_ASSIGN_OR_RETURN(decoded.floats[parameter.name], read_floats(parameter));
    } else {
      NIBBLE_ASSIGN_OR_RETURN(decoded.coded[parameter.name], read_codes(parameter));
    }
  }
  return decoded;
}

}  // namespace nibble
