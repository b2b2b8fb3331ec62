// A decoder's sizes, as its Program has them, and the keys of a GGUF that say them.
//
// unsupported: an architecture that GGUF has no name for, or something that its keys
// cannot say: windows that differ from layer to layer, layers without experts beside
// layers with them (named).
#pragma once

#include <string>
#include <vector>

#include "export/gguf/metadata_writer.h"
#include "export/gguf/names.h"
#include "kernels/ops/rope/rope.h"
#include "kernels/program/program.h"
#include "kernels/tokenizer/gguf_vocabulary.h"

namespace nibble {

struct GgufDecoder {
  const GgufArchitecture* architecture = nullptr;
  int64_t vocabulary = 0, context = 0, hidden = 0, intermediate = 0, layers = 0;
  int64_t heads = 0, kv_heads = 0, head_dim = 0, window = 0;
  int64_t experts = 0, experts_per_token = 0, expert_intermediate = 0;
  double epsilon = 0;
  RopeShape rope;
  bool rows_are_paired = false;  // the program's own rope reads pairs
  bool pairs_rows = false;       // and must be put so in the file

  bool has_rope_frequencies() const { return rope.scaling == "llama3"; }
  std::vector<float> rope_divisors() const;  // [head_dim / 2]
};
// All but hidden and intermediate, which are sizes of tensors.
Result<GgufDecoder> decoder_of(const Program& program);

void write_decoder_keys(const GgufDecoder& decoder, GgufMetadataWriter& keys);
void write_vocabulary_keys(const GgufVocabulary& vocabulary,
                           const std::string& chat_template, GgufMetadataWriter& keys);

}  // namespace nibble
