// What a decoder and its parameters are called in a GGUF file.
//
//   model.embed_tokens.weight                  token_embd.weight
//   model.layers.3.self_attn.q_proj.weight     blk.3.attn_q.weight
//   model.layers.3.mlp.experts.5.up_proj.weight    rows of blk.3.ffn_up_exps.weight
//   model.norm.weight, lm_head.weight          output_norm.weight, output.weight
//
// Allocates. Safe to call from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct GgufArchitecture {
  const char* architecture;  // the Program's: "LlamaForCausalLM"
  const char* model_type;    // config.json's
  const char* gguf;          // general.architecture, and the keys' prefix
  // Rows of q and k lie as (2i, 2i + 1) pairs, the way of interleaved rope.
  bool interleaved;
};
const std::vector<GgufArchitecture>& gguf_architectures();
// null: none of that name.
const GgufArchitecture* gguf_architecture_of(std::string_view program_architecture);
const GgufArchitecture* gguf_architecture_named(std::string_view gguf);

// A GGUF tensor, and which expert of it where it holds one matrix an expert (else -1).
struct GgufName {
  std::string name;
  int64_t expert = -1;
};
// "" where a GGUF has no such tensor.
GgufName gguf_name(std::string_view parameter);
// The way back; "" for a name that is none of a decoder's. Expert tensors: expert >= 0.
std::string parameter_name(std::string_view gguf, int64_t expert = -1);
bool holds_experts(std::string_view gguf);  // "blk.0.ffn_up_exps.weight"
// Is it a projection to queries or keys, weight or bias?
bool is_turned(std::string_view parameter);

}  // namespace nibble
