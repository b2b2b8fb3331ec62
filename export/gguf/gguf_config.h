// The keys of a decoder in a GGUF as a config.json of transformers, from which its graph
// follows.
//
// data_loss: a key that is missing or of a wrong type or value (named). unsupported: an
// architecture or a key of it that nibble does not know, another rope scaling than linear
// and llama3's.
#pragma once

#include <string>

#include "export/gguf/gguf_file.h"
#include "export/gguf/names.h"

namespace nibble {

// What llama3's scaling divides each frequency by, [head_dim / 2] F32.
inline constexpr const char* kRopeFrequencies = "rope_freqs.weight";

struct GgufConfig {
  const GgufArchitecture* architecture = nullptr;
  std::string json;
  int64_t head_dim = 0;
  int64_t experts = 0;
};
Result<GgufConfig> read_gguf_config(const GgufFile& file);

}  // namespace nibble
