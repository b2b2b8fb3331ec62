#include "export/gguf/names.h"

#include <charconv>

#include "kernels/base/status.h"

namespace nibble {
namespace {

struct Pair {
  std::string_view parameter, gguf;
};
constexpr Pair kOutside[] = {{"model.embed_tokens", "token_embd"},
                             {"model.norm", "output_norm"},
                             {"lm_head", "output"}};
constexpr Pair kLayer[] = {
    {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
    {"self_attn.o_proj", "attn_output"}, {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"}, {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},       {"mlp.gate", "ffn_gate_inp"}};
constexpr Pair kExpert[] = {{"gate_proj", "ffn_gate_exps"},
                            {"up_proj", "ffn_up_exps"},
                            {"down_proj", "ffn_down_exps"}};
constexpr std::string_view kLayers = "model.layers.", kBlock = "blk.",
                           kExperts = "mlp.experts.";

bool take(std::string_view& text, std::string_view beginning) {
  if (text.substr(0, beginning.size()) != beginning) return false;
  text.remove_prefix(beginning.size());
  return true;
}

// "12." at the beginning; -1 where there is none.
int64_t take_number(std::string_view& text) {
  int64_t number = -1;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), number);
  if (end.ec != std::errc() || number < 0 || end.ptr == text.data() + text.size() ||
      *end.ptr != '.') {
    return -1;
  }
  text.remove_prefix(static_cast<size_t>(end.ptr - text.data()) + 1);
  return number;
}

// ".weight" or ".bias" at the end.
std::string_view take_suffix(std::string_view& text) {
  for (const std::string_view suffix : {".weight", ".bias"}) {
    if (text.size() <= suffix.size() ||
        text.substr(text.size() - suffix.size()) != suffix) {
      continue;
    }
    text.remove_suffix(suffix.size());
    return suffix;
  }
  return {};
}

}  // namespace

const std::vector<GgufArchitecture>& gguf_architectures() {
  static const std::vector<GgufArchitecture> rows = {
      {"LlamaForCausalLM", "llama", "llama", true},
      {"MistralForCausalLM", "mistral", "llama", true},
      {"Qwen2ForCausalLM", "qwen2", "qwen2", false},
      {"Qwen3ForCausalLM", "qwen3", "qwen3", false},
      {"Qwen3MoeForCausalLM", "qwen3_moe", "qwen3moe", false}};
  return rows;
}

const GgufArchitecture* gguf_architecture_of(std::string_view program_architecture) {
  for (const GgufArchitecture& row : gguf_architectures()) {
    if (program_architecture == row.architecture) return &row;
  }
  return nullptr;
}

const GgufArchitecture* gguf_architecture_named(std::string_view gguf) {
  for (const GgufArchitecture& row : gguf_architectures()) {
    if (gguf == row.gguf) return &row;
  }
  return nullptr;
}

GgufName gguf_name(std::string_view parameter) {
  std::string_view rest = parameter;
  const std::string_view suffix = take_suffix(rest);
  if (suffix.empty()) return {};
  for (const Pair& pair : kOutside) {
    if (rest == pair.parameter) return {cat(pair.gguf, suffix), -1};
  }
  if (!take(rest, kLayers)) return {};
  const int64_t layer = take_number(rest);
  if (layer < 0) return {};
  for (const Pair& pair : kLayer) {
    if (rest == pair.parameter) return {cat(kBlock, layer, ".", pair.gguf, suffix), -1};
  }
  if (!take(rest, kExperts)) return {};
  const int64_t expert = take_number(rest);
  for (const Pair& pair : kExpert) {
    if (expert >= 0 && rest == pair.parameter)
      return {cat(kBlock, layer, ".", pair.gguf, suffix), expert};
  }
  return {};
}

std::string parameter_name(std::string_view gguf, int64_t expert) {
  std::string_view rest = gguf;
  const std::string_view suffix = take_suffix(rest);
  if (suffix.empty()) return {};
  for (const Pair& pair : kOutside) {
    if (rest == pair.gguf) return cat(pair.parameter, suffix);
  }
  if (!take(rest, kBlock)) return {};
  const int64_t layer = take_number(rest);
  if (layer < 0) return {};
  for (const Pair& pair : kLayer) {
    if (rest == pair.gguf) return cat(kLayers, layer, ".", pair.parameter, suffix);
  }
  for (const Pair& pair : kExpert) {
    if (rest == pair.gguf && expert >= 0)
      return cat(kLayers, layer, ".", kExperts, expert, ".", pair.parameter, suffix);
  }
  return {};
}

bool holds_experts(std::string_view gguf) {
  return !parameter_name(gguf, 0).empty() && parameter_name(gguf).empty();
}

bool is_turned(std::string_view parameter) {
  return parameter.find(".self_attn.q_proj.") != std::string_view::npos ||
         parameter.find(".self_attn.k_proj.") != std::string_view::npos;
}

}  // namespace nibble
