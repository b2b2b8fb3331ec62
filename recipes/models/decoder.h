// The decoder that Llama and its relatives share, as one Program:
//   x += W_o Attention(Rope(W_q h), Rope(W_k h), W_v h),  h = RMS(x)
//   x += W_down (silu(W_gate h) * W_up h),                h = RMS(x), or a mixture of
//                                                         experts, each such an MLP
//
// An architecture is a small file: it reads what its config.json may say into a
// DecoderConfig and asks for the Program. Node and parameter names are the checkpoint's.
//
// config.json in the form of transformers 4 (rope_theta, rope_scaling) and 5
// (rope_parameters). unsupported: a field asks for what no node does (named).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/ops/rope/rope.h"
#include "kernels/program/program.h"
#include "recipes/models/config_reader.h"

namespace nibble {

// What an architecture takes where config.json is silent.
struct DecoderDefaults {
  int64_t vocabulary, hidden, intermediate, layers, heads;
  int64_t kv_heads;  // 0: as many as heads
  int64_t head_dim;  // 0: hidden / heads
  int64_t context;
  double epsilon;
};

struct DecoderConfig {
  int64_t vocabulary = 0, hidden = 0, intermediate = 0, layers = 0, heads = 0,
          kv_heads = 0, head_dim = 0, context = 0;
  double epsilon = 0;
  RopeShape rope;
  bool rope_interleaved = false;  // q and k rows pair as (2i, 2i+1), as llama2.c's do
  bool tied = false;
  bool qkv_bias = false, output_bias = false, mlp_bias = false;
  bool head_norms = false;  // q_norm and k_norm: each head through an RMS norm of its own
  std::vector<int64_t> windows;   // of sliding-window attention, one a layer; 0: none
  std::vector<bool> has_experts;  // one a layer; empty: none has
  int64_t experts = 0, experts_per_token = 0, expert_intermediate = 0;
  bool normalize_experts = false;  // the chosen experts' shares sum to 1
};

// The fields that all decoders have; no biases, no windows. Errors: config.status().
DecoderConfig read_decoder(ConfigReader& config, const DecoderDefaults& defaults);

// Sets c.windows: `window` (0: none) from layer `first` on, or where "layer_types" says
// sliding_attention.
void read_windows(ConfigReader& config, int64_t window, int64_t first, DecoderConfig& c);

// config's status, else the checked Program.
Result<Program> decoder_program(const char* architecture, const ConfigReader& config,
                                const DecoderConfig& c);

// Do the tensors have a decoder's names?
bool decoder_recognises(const std::map<std::string, Tensor>& tensors);
// not_found: heads and rope are in config.json alone.
Result<std::string> decoder_config(const char* architecture);
// Tables of old checkpoints, and a tied model's own lm_head (the tie decides).
bool decoder_ignores(const std::string& tensor, const Program& program);

}  // namespace nibble
