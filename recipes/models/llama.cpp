// LlamaForCausalLM. nibble's own field rope_interleaved says that q and k rows pair as
// (2i, 2i+1), as llama2.c stores them.
#include "recipes/models/architecture.h"
#include "recipes/models/decoder.h"

namespace nibble {

Result<Program> llama_program(const std::string& config_json) {
  ConfigReader config(config_json);
  DecoderConfig c = read_decoder(config, {.vocabulary = 32000,
                                          .hidden = 4096,
                                          .intermediate = 11008,
                                          .layers = 32,
                                          .heads = 32,
                                          .kv_heads = 0,
                                          .head_dim = 0,
                                          .context = 2048,
                                          .epsilon = 1e-6});
  c.qkv_bias = c.output_bias = config.boolean("attention_bias", false);
  c.mlp_bias = config.boolean("mlp_bias", false);
  c.rope_interleaved = config.boolean("rope_interleaved", false);
  return decoder_program("LlamaForCausalLM", config, c);
}

bool llama_recognises(const std::map<std::string, Tensor>& tensors) {
  return decoder_recognises(tensors) &&
         tensors.count("model.layers.0.mlp.gate_proj.weight") > 0 &&
         tensors.count("model.layers.0.self_attn.q_norm.weight") == 0 &&
         tensors.count("model.layers.0.self_attn.q_proj.bias") ==
             tensors.count("model.layers.0.self_attn.o_proj.bias");
}

Result<std::string> llama_config(const std::map<std::string, Tensor>&) {
  return decoder_config("LlamaForCausalLM");
}

bool llama_ignores(const std::string& tensor, const Program& program) {
  return decoder_ignores(tensor, program);
}

}  // namespace nibble
