// A random decoder of two layers with four experts each, two a token.
#pragma once

#include "recipes/models/architecture.h"
#include "recipes/models/initialise.h"

namespace nibble {

inline Artifact tiny_mixture() {
  Artifact mixture;
  mixture.config_json =
      R"({"architectures":["Qwen3MoeForCausalLM"],"model_type":"qwen3_moe",
          "vocab_size":40,"hidden_size":32,"intermediate_size":24,"num_hidden_layers":2,
          "num_attention_heads":2,"num_key_value_heads":1,"head_dim":8,
          "max_position_embeddings":64,"num_experts":4,"num_experts_per_tok":2,
          "moe_intermediate_size":32,"norm_topk_prob":true,"tie_word_embeddings":false})";
  mixture.program =
      find_architecture("qwen3_moe").value()->program(mixture.config_json).value();
  mixture.tensors = initialise(mixture.program, 0.4, 3).value();
  return mixture;
}

}  // namespace nibble
