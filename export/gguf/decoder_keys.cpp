#include "export/gguf/decoder_keys.h"

#include "kernels/program/rope_attributes.h"

namespace nibble {
namespace {

template <class... Parts>
Status unsupported(const Parts&... parts) {
  return error(StatusCode::unsupported, "[gguf] ", parts...);
}

Status read_rope(const Node& node, GgufDecoder& d, bool first) {
  const RopeShape shape = rope_shape(node);
  const bool pairs = node.integer("interleaved", 0) != 0;
  if (!first && (!(shape == d.rope) || pairs != d.rows_are_paired))
    return unsupported(node.name,
                       ": one rope for all layers was required; found another");
  if (pairs && !d.architecture->interleaved)
    return unsupported(node.name, ": ", d.architecture->gguf,
                       " turns halves of a head; found a rope of pairs");
  d.rope = shape;
  d.rows_are_paired = pairs;
  d.pairs_rows = d.architecture->interleaved && !pairs;
  return ok_status();
}

Status read_attention(const Node& node, GgufDecoder& d) {
  const int64_t window = node.integer("window", 0);
  if (d.heads != 0 && window != d.window)
    return unsupported(node.name, ": one sliding window for all layers was required; ",
                       "found ", window, " beside ", d.window);
  d.heads = node.integer("heads", 0);
  d.kv_heads = node.integer("kv_heads", 0);
  d.head_dim = node.integer("head_dim", 0);
  d.window = window;
  return ok_status();
}

Status read_experts(const Node& node, GgufDecoder& d, int64_t* mixtures) {
  ++*mixtures;
  d.experts = node.integer("experts", 0);
  d.experts_per_token = node.integer("experts_per_token", 0);
  d.expert_intermediate = node.integer("width", 0);
  if (node.integer("normalize", 0) == 0)
    return unsupported(node.name, ": ", d.architecture->gguf,
                       " makes the shares of the chosen experts sum to 1; found a model "
                       "that does not (norm_topk_prob)");
  return ok_status();
}

}  // namespace

std::vector<float> GgufDecoder::rope_divisors() const {
  RopeShape plain = rope;
  plain.scaling = "";
  const std::vector<double> f = rope_frequencies(plain), scaled = rope_frequencies(rope);
  std::vector<float> divisors;
  for (size_t i = 0; i < f.size(); ++i)
    divisors.push_back(static_cast<float>(f[i] / scaled[i]));
  return divisors;
}

Result<GgufDecoder> decoder_of(const Program& program) {
  GgufDecoder d;
  d.architecture = gguf_architecture_of(program.architecture);
  if (d.architecture == nullptr) {
    std::string known;
    for (const GgufArchitecture& row : gguf_architectures())
      known += cat(known.empty() ? "" : ", ", row.architecture);
    return unsupported(program.architecture, ": a decoder of ", known,
                       " was required; GGUF has no other that nibble has");
  }
  d.vocabulary = program.vocabulary;
  d.context = program.context_length;
  d.layers = program.block_count();
  bool first_rope = true;
  int64_t mixtures = 0;
  for (const Node& node : program.nodes) {
    if (node.op == "rope") {
      NIBBLE_RETURN_IF_ERROR(read_rope(node, d, first_rope));
      first_rope = false;
    } else if (node.op == "attention") {
      NIBBLE_RETURN_IF_ERROR(read_attention(node, d));
    } else if (node.op == "moe") {
      NIBBLE_RETURN_IF_ERROR(read_experts(node, d, &mixtures));
    } else if (node.op == "rms_norm") {
      d.epsilon = node.number("epsilon", 0);
    }
  }
  if (mixtures != 0 && mixtures != d.layers)
    return unsupported(d.architecture->architecture, ": experts in every layer were ",
                       "required; found them in ", mixtures, " of ", d.layers);
  // A mixture everywhere leaves no layer of the plain size; llama.cpp wants the key.
  d.intermediate = d.expert_intermediate;
  return d;
}

void write_decoder_keys(const GgufDecoder& d, GgufMetadataWriter& keys) {
  const std::string prefix = cat(d.architecture->gguf, ".");
  const auto number = [&](const char* key, int64_t value) {
    keys.number(prefix + key, static_cast<uint32_t>(value));
  };
  keys.text("general.architecture", d.architecture->gguf);
  keys.text("general.type", "model");
  keys.text("general.name", d.architecture->architecture);
  keys.number("general.alignment", kGgufAlignment);
  number("context_length", d.context);
  number("embedding_length", d.hidden);
  number("block_count", d.layers);
  number("feed_forward_length", d.intermediate);
  number("attention.head_count", d.heads);
  number("attention.head_count_kv", d.kv_heads);
  number("attention.key_length", d.head_dim);
  number("attention.value_length", d.head_dim);
  keys.real(prefix + "attention.layer_norm_rms_epsilon", static_cast<float>(d.epsilon));
  if (d.window > 0) number("attention.sliding_window", d.window);
  number("rope.dimension_count", d.head_dim);
  keys.real(prefix + "rope.freq_base", static_cast<float>(d.rope.theta));
  if (d.rope.scaling == "linear") {
    keys.text(prefix + "rope.scaling.type", "linear");
    keys.real(prefix + "rope.scaling.factor", static_cast<float>(d.rope.factor));
  }
  if (d.has_rope_frequencies())
    number("rope.scaling.original_context_length", d.rope.original_context);
  if (d.experts > 0) {
    number("expert_count", d.experts);
    number("expert_used_count", d.experts_per_token);
    number("expert_feed_forward_length", d.expert_intermediate);
  }
  number("vocab_size", d.vocabulary);
}

void write_vocabulary_keys(const GgufVocabulary& v, const std::string& chat_template,
                           GgufMetadataWriter& keys) {
  keys.text("tokenizer.ggml.model", v.model);
  if (!v.pre.empty()) keys.text("tokenizer.ggml.pre", v.pre);
  if (v.model == "llama") keys.text("tokenizer.ggml.pre", "default");
  keys.texts("tokenizer.ggml.tokens", v.tokens);
  if (!v.scores.empty()) keys.reals("tokenizer.ggml.scores", v.scores);
  keys.integers("tokenizer.ggml.token_type", v.types);
  if (!v.merges.empty()) keys.texts("tokenizer.ggml.merges", v.merges);
  const auto id = [&](const char* key, int32_t value) {
    if (value >= 0) keys.number(key, static_cast<uint32_t>(value));
  };
  id("tokenizer.ggml.bos_token_id", v.bos);
  id("tokenizer.ggml.eos_token_id", v.eos);
  id("tokenizer.ggml.eot_token_id", v.eot);
  id("tokenizer.ggml.unknown_token_id", v.unknown);
  keys.flag("tokenizer.ggml.add_bos_token", v.add_bos);
  keys.flag("tokenizer.ggml.add_eos_token", v.add_eos);
  // Of SentencePiece alone: llama.cpp would take a space off byte-level text for it.
  if (v.model == "llama")
    keys.flag("tokenizer.ggml.add_space_prefix", v.add_space_prefix);
  if (!chat_template.empty()) keys.text("tokenizer.chat_template", chat_template);
}

}  // namespace nibble
