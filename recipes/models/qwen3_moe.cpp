// Qwen3MoeForCausalLM: a Qwen3 whose layers send each token to num_experts_per_tok of
// num_experts small MLPs. Every decoder_sparse_step-th layer has experts, but those of
// mlp_only_layers, which have one MLP of intermediate_size.
#include <algorithm>

#include "recipes/models/architecture.h"
#include "recipes/models/decoder.h"

namespace nibble {

Result<Program> qwen3_moe_program(const std::string& config_json) {
  ConfigReader config(config_json);
  DecoderConfig c = read_decoder(config, {.vocabulary = 151936,
                                          .hidden = 2048,
                                          .intermediate = 6144,
                                          .layers = 24,
                                          .heads = 32,
                                          .kv_heads = 4,
                                          .head_dim = 0,
                                          .context = 32768,
                                          .epsilon = 1e-6});
  c.qkv_bias = c.output_bias = config.boolean("attention_bias", false);
  c.head_norms = true;
  if (config.boolean("use_sliding_window", false) && !config.is_null("sliding_window")) {
    read_windows(config, config.integer("sliding_window", 4096, 1, int64_t{1} << 30), 0,
                 c);
  }
  // Newer files say num_local_experts.
  c.experts = config.integer(
      "num_experts", config.integer("num_local_experts", 128, 1, 1 << 16), 1, 1 << 16);
  c.experts_per_token = config.integer("num_experts_per_tok", 8, 1, 1 << 16);
  c.expert_intermediate = config.integer("moe_intermediate_size", 768, 1, 1 << 24);
  c.normalize_experts = config.boolean("norm_topk_prob", false);
  const int64_t step = config.integer("decoder_sparse_step", 1, 1, 1 << 20);
  const std::vector<int64_t> plain = config.integers("mlp_only_layers", {});
  if (c.experts_per_token > c.experts) {
    config.refuse("num_experts_per_tok", cat("at most num_experts, ", c.experts),
                  cat(c.experts_per_token));
  }
  for (int64_t i = 0; i < c.layers; ++i) {
    c.has_experts.push_back((i + 1) % step == 0 &&
                            std::find(plain.begin(), plain.end(), i) == plain.end());
  }
  return decoder_program("Qwen3MoeForCausalLM", config, c);
}

bool qwen3_moe_recognises(const std::map<std::string, Tensor>& tensors) {
  const auto experts = tensors.lower_bound("model.layers.0.mlp.experts.");
  return decoder_recognises(tensors) &&
         tensors.count("model.layers.0.self_attn.q_norm.weight") > 0 &&
         experts != tensors.end() &&
         experts->first.rfind("model.layers.0.mlp.experts.", 0) == 0;
}

Result<std::string> qwen3_moe_config(const std::map<std::string, Tensor>&) {
  return decoder_config("Qwen3MoeForCausalLM");
}

bool qwen3_moe_ignores(const std::string& tensor, const Program& program) {
  return decoder_ignores(tensor, program);
}

}  // namespace nibble
