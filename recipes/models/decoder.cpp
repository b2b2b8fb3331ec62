#include "recipes/models/decoder.h"

#include <cmath>

#include "kernels/program/rope_attributes.h"
#include "recipes/models/graph_builder.h"

namespace nibble {
namespace {

constexpr int64_t kMost = int64_t{1}
                          << 24;  // of any one size: keeps products inside 64 bits

// The scaling that one object of config.json ("rope_parameters", "rope_scaling") asks
// for.
void read_rope_scaling(ConfigReader& config, const std::string& path, int64_t context,
                       RopeShape& rope) {
  const std::string type =
      config.text(path + "/rope_type", config.text(path + "/type", "default"));
  if (config.has(path + "/full_attention") || config.has(path + "/sliding_attention")) {
    config.refuse(path, "one rope for all layers", "one a layer type");
  }
  if (type == "default") return;
  if (type != "linear" && type != "llama3") {
    config.refuse(path, "rope_type default, linear or llama3", "rope_type " + type);
    return;
  }
  rope.scaling = type;
  const auto number = [&](const char* field) {
    if (!config.has(path + "/" + field)) {
      config.refuse(path, cat("rope_type ", type, " with ", field),
                    cat("no ", field, "; is config.json complete?"));
    }
    return config.positive(path + "/" + field, 1.0);
  };
  rope.factor = number("factor");
  if (type != "llama3") return;
  rope.low_frequency_factor = number("low_freq_factor");
  rope.high_frequency_factor = number("high_freq_factor");
  rope.original_context = config.integer(path + "/original_max_position_embeddings",
                                         context, 1, int64_t{1} << 31);
  if (!(rope.high_frequency_factor > rope.low_frequency_factor)) {
    config.refuse(path, "high_freq_factor above low_freq_factor",
                  cat(rope.high_frequency_factor, " and ", rope.low_frequency_factor));
  }
}

class Builder : public GraphBuilder {
 public:
  Builder(Program& program, const DecoderConfig& config)
      : GraphBuilder(program), c_(config) {}

  std::string norm(const std::string& name, const std::string& input) {
    return add("rms_norm", name, {input}, {{"weight", name + ".weight"}},
               {{"epsilon", c_.epsilon}});
  }
  // A query or key projection, ready for attention: norm of each head, rope.
  std::string turned(const std::string& attention, const char* which,
                     const std::string& input, int64_t heads) {
    std::string x = linear(cat(attention, ".", which, "_proj"), input,
                           heads * c_.head_dim, c_.qkv_bias);
    if (c_.head_norms) {
      const std::string name = cat(attention, ".", which, "_norm");
      x = add("rms_norm", name, {x}, {{"weight", name + ".weight"}},
              {{"epsilon", c_.epsilon}, {"head_dim", c_.head_dim}});
    }
    std::map<std::string, Attribute> rope = rope_attributes(c_.rope);
    rope["interleaved"] = int64_t{c_.rope_interleaved};
    return add("rope", cat(attention, ".", which, "_rope"), {x}, {}, rope);
  }
  std::string attention(const std::string& name, const std::string& input,
                        int64_t window) {
    const std::string q = turned(name, "q", input, c_.heads);
    const std::string k = turned(name, "k", input, c_.kv_heads);
    const std::string v =
        linear(name + ".v_proj", input, c_.kv_heads * c_.head_dim, c_.qkv_bias);
    std::map<std::string, Attribute> attributes = {
        {"heads", c_.heads},
        {"kv_heads", c_.kv_heads},
        {"head_dim", c_.head_dim},
        {"scale", 1.0 / std::sqrt(static_cast<double>(c_.head_dim))},
        {"state", name + ".cache"}};
    if (window > 0) attributes["window"] = window;
    const std::string mixed =
        add("attention", name + ".attention", {q, k, v}, {}, attributes);
    program_.states.push_back({name + ".cache", c_.kv_heads, c_.head_dim});
    return linear(name + ".o_proj", mixed, c_.hidden, c_.output_bias);
  }
  std::string mlp(const std::string& name, const std::string& input) {
    const std::string gate =
        linear(name + ".gate_proj", input, c_.intermediate, c_.mlp_bias);
    const std::string up = linear(name + ".up_proj", input, c_.intermediate, c_.mlp_bias);
    const std::string gated = add("silu_mul", name + ".silu_mul", {gate, up});
    return linear(name + ".down_proj", gated, c_.hidden, c_.mlp_bias);
  }
  // The router is a linear layer of its own; the experts are one node.
  std::string experts(const std::string& name, const std::string& input) {
    const std::string logits = linear(name + ".gate", input, c_.experts, false);
    std::map<std::string, std::string> parameters;
    for (int64_t e = 0; e < c_.experts; ++e) {
      for (const char* part : {"gate_proj", "up_proj", "down_proj"}) {
        const std::string role = cat(e, ".", part);
        parameters[role] = cat(name, ".experts.", role, ".weight");
      }
    }
    return add("moe", name + ".experts", {input, logits}, parameters,
               {{"experts", c_.experts},
                {"experts_per_token", c_.experts_per_token},
                {"normalize", int64_t{c_.normalize_experts}},
                {"width", c_.expert_intermediate}});
  }

 private:
  const DecoderConfig& c_;
};

}  // namespace

DecoderConfig read_decoder(ConfigReader& config, const DecoderDefaults& defaults) {
  DecoderConfig c;
  c.vocabulary = config.integer("vocab_size", defaults.vocabulary, 1, kMost);
  c.hidden = config.integer("hidden_size", defaults.hidden, 1, kMost);
  c.intermediate = config.integer("intermediate_size", defaults.intermediate, 1, kMost);
  c.layers = config.integer("num_hidden_layers", defaults.layers, 1, 100000);
  c.heads = config.integer("num_attention_heads", defaults.heads, 1, kMost);
  const bool as_heads = defaults.kv_heads == 0 || config.is_null("num_key_value_heads");
  c.kv_heads = config.integer("num_key_value_heads",
                              as_heads ? c.heads : defaults.kv_heads, 1, kMost);
  const bool from_hidden = defaults.head_dim == 0 || config.is_null("head_dim");
  c.head_dim = config.integer(
      "head_dim", from_hidden ? c.hidden / c.heads : defaults.head_dim, 1, 1 << 16);
  c.context =
      config.integer("max_position_embeddings", defaults.context, 1, int64_t{1} << 31);
  c.epsilon = config.positive("rms_norm_eps", defaults.epsilon);
  c.rope.head_dim = c.head_dim;
  c.rope.theta = config.positive("rope_parameters/rope_theta",
                                 config.positive("rope_theta", 10000.0));
  for (const char* object : {"rope_scaling", "rope_parameters"}) {
    read_rope_scaling(config, object, c.context, c.rope);
  }
  c.tied = config.boolean("tie_word_embeddings", false);
  c.windows.assign(static_cast<size_t>(c.layers), 0);
  const std::string activation = config.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    config.refuse("hidden_act", "silu", activation);
  }
  if (config.positive("partial_rotary_factor", 1.0) != 1.0 ||
      config.positive("rope_parameters/partial_rotary_factor", 1.0) != 1.0) {
    config.refuse("partial_rotary_factor", "1", "another");
  }
  for (const char* cap : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    if (config.has(cap)) config.refuse(cap, "logits without a soft cap", "one");
  }
  if (config.has("quantization_config")) {
    config.refuse(
        "quantization_config", "float checkpoints and its own artifacts",
        cat("quant_method ", config.text("quantization_config/quant_method", "?")));
  }
  return c;
}

void read_windows(ConfigReader& config, int64_t window, int64_t first, DecoderConfig& c) {
  const std::vector<std::string> types = config.texts("layer_types");
  if (!types.empty() && static_cast<int64_t>(types.size()) != c.layers) {
    config.refuse("layer_types", cat("one a layer, ", c.layers), cat(types.size()));
    return;
  }
  for (size_t i = 0; i < c.windows.size(); ++i) {
    bool slides = static_cast<int64_t>(i) >= first;
    if (!types.empty()) {
      slides = types[i] == "sliding_attention";
      if (!slides && types[i] != "full_attention") {
        config.refuse("layer_types", "full_attention and sliding_attention", types[i]);
      }
      if (slides && window == 0) {
        config.refuse("layer_types", "sliding_attention with a sliding_window", "none");
      }
    }
    c.windows[i] = slides ? window : 0;
  }
}

Result<Program> decoder_program(const char* architecture, const ConfigReader& config,
                                const DecoderConfig& c) {
  NIBBLE_RETURN_IF_ERROR(config.status());
  if (c.heads % c.kv_heads != 0 || c.head_dim % 2 != 0) {
    return error(StatusCode::invalid_argument,
                 "[models] config.json: num_key_value_heads must "
                 "divide num_attention_heads and head_dim be even; found ",
                 c.kv_heads, ", ", c.heads, " and ", c.head_dim);
  }
  Program program;
  program.architecture = architecture;
  program.context_length = c.context;
  program.vocabulary = c.vocabulary;
  program.inputs = {{"input_ids", DType::i64, {"batch", "sequence"}}};
  program.outputs = {
      {"logits", DType::f32, {"batch", "sequence", std::to_string(c.vocabulary)}}};
  Builder build(program, c);
  const std::string embedding = "model.embed_tokens.weight";
  std::string x = build.add("embedding", "model.embed_tokens", {"input_ids"},
                            {{"weight", embedding}}, {{"features", c.hidden}});
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = cat("model.layers.", i);
    build.set_block(static_cast<int>(i));
    std::string h = build.norm(layer + ".input_layernorm", x);
    h = build.attention(layer + ".self_attn", h, c.windows[static_cast<size_t>(i)]);
    x = build.add("add", layer + ".attention_residual", {x, h});
    h = build.norm(layer + ".post_attention_layernorm", x);
    const bool mixture = !c.has_experts.empty() && c.has_experts[static_cast<size_t>(i)];
    h = mixture ? build.experts(layer + ".mlp", h) : build.mlp(layer + ".mlp", h);
    x = build.add("add", layer + ".mlp_residual", {x, h});
  }
  build.set_block(kLastBlock);
  x = build.norm("model.norm", x);
  build.add("linear", "lm_head", {x}, {{"weight", c.tied ? embedding : "lm_head.weight"}},
            {{"out_features", c.vocabulary}}, "logits");
  NIBBLE_RETURN_IF_ERROR(check_program(program));
  return program;
}

bool decoder_recognises(const std::map<std::string, Tensor>& tensors) {
  return tensors.count("model.embed_tokens.weight") > 0 &&
         tensors.count("model.layers.0.self_attn.q_proj.weight") > 0;
}

Result<std::string> decoder_config(const char* architecture) {
  return error(StatusCode::not_found, "[models] ", architecture,
               ": its heads and rope are in config.json, which must "
               "lie beside the weights; found weights alone; give the directory");
}

bool decoder_ignores(const std::string& tensor, const Program& program) {
  const std::string inverse_frequencies = ".rotary_emb.inv_freq";
  if (tensor.size() > inverse_frequencies.size() &&
      tensor.compare(tensor.size() - inverse_frequencies.size(), std::string::npos,
                     inverse_frequencies) == 0) {
    return true;
  }
  // A tied model's own copy: the tie decides, as in transformers.
  return tensor == "lm_head.weight" &&
         program.find("lm_head")->parameter("weight") != "lm_head.weight";
}

}  // namespace nibble
