// Qwen2ForCausalLM: a Llama with biases on q, k and v. Qwen3ForCausalLM: without them,
// but with an RMS norm of each query and key head. Both may let the layers from
// max_window_layers on (or those that layer_types names) see sliding_window positions
// only, where use_sliding_window is true.
#include "recipes/models/architecture.h"
#include "recipes/models/decoder.h"

namespace nibble {
namespace {

void read_qwen_windows(ConfigReader& config, DecoderConfig& c) {
  int64_t window = 0;
  if (config.boolean("use_sliding_window", false) && !config.is_null("sliding_window")) {
    window = config.integer("sliding_window", 4096, 1, int64_t{1} << 30);
  }
  read_windows(config, window, config.integer("max_window_layers", 28, 0, 1 << 20), c);
}

}  // namespace

Result<Program> qwen2_program(const std::string& config_json) {
  ConfigReader config(config_json);
  DecoderConfig c = read_decoder(config, {.vocabulary = 151936,
                                          .hidden = 4096,
                                          .intermediate = 22016,
                                          .layers = 32,
                                          .heads = 32,
                                          .kv_heads = 32,
                                          .head_dim = 0,
                                          .context = 32768,
                                          .epsilon = 1e-6});
  c.qkv_bias = true;
  read_qwen_windows(config, c);
  return decoder_program("Qwen2ForCausalLM", config, c);
}

bool qwen2_recognises(const std::map<std::string, Tensor>& tensors) {
  return decoder_recognises(tensors) &&
         tensors.count("model.layers.0.mlp.gate_proj.weight") > 0 &&
         tensors.count("model.layers.0.self_attn.q_proj.bias") > 0 &&
         tensors.count("model.layers.0.self_attn.o_proj.bias") == 0;
}

Result<std::string> qwen2_config(const std::map<std::string, Tensor>&) {
  return decoder_config("Qwen2ForCausalLM");
}

bool qwen2_ignores(const std::string& tensor, const Program& program) {
  return decoder_ignores(tensor, program);
}

Result<Program> qwen3_program(const std::string& config_json) {
  ConfigReader config(config_json);
  DecoderConfig c = read_decoder(config, {.vocabulary = 151936,
                                          .hidden = 4096,
                                          .intermediate = 22016,
                                          .layers = 32,
                                          .heads = 32,
                                          .kv_heads = 32,
                                          .head_dim = 128,
                                          .context = 32768,
                                          .epsilon = 1e-6});
  c.qkv_bias = c.output_bias = config.boolean("attention_bias", false);
  c.head_norms = true;
  read_qwen_windows(config, c);
  return decoder_program("Qwen3ForCausalLM", config, c);
}

bool qwen3_recognises(const std::map<std::string, Tensor>& tensors) {
  return decoder_recognises(tensors) &&
         tensors.count("model.layers.0.mlp.gate_proj.weight") > 0 &&
         tensors.count("model.layers.0.self_attn.q_norm.weight") > 0;
}

Result<std::string> qwen3_config(const std::map<std::string, Tensor>&) {
  return decoder_config("Qwen3ForCausalLM");
}

bool qwen3_ignores(const std::string& tensor, const Program& program) {
  return decoder_ignores(tensor, program);
}

}  // namespace nibble
