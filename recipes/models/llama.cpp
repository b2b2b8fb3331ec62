// LlamaForCausalLM: x += Attention(RMS(x)); x += W_down(silu(W_gate RMS(x)) * W_up
// RMS(x)). Fields and defaults as Hugging Face's config.json has them, in the form of
// transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters). nibble's own field
// rope_interleaved says that q and k rows pair as (2i, 2i+1), as llama2.c stores them.
#include <cmath>

#include "recipes/models/architecture.h"
#include "recipes/models/config_reader.h"

namespace nibble {
namespace {

constexpr int64_t kMost = int64_t{1}
                          << 24;  // of any one size: keeps products inside 64 bits

struct LlamaConfig {
  int64_t vocabulary, hidden, intermediate, layers, heads, kv_heads, head_dim, context;
  double epsilon, theta, initializer_range;
  bool tied, attention_bias, mlp_bias, interleaved;
};

double rope_theta(ConfigReader& config) {
  for (const char* object : {"rope_parameters", "rope_scaling"}) {
    const std::string path = object;
    const std::string type =
        config.text(path + "/rope_type", config.text(path + "/type", "default"));
    if (type != "default") config.refuse(path, "rope_type default", "rope_type " + type);
    if (config.has(path + "/full_attention") || config.has(path + "/sliding_attention")) {
      config.refuse(path, "one rope for all layers", "one a layer type");
    }
  }
  return config.positive("rope_parameters/rope_theta",
                         config.positive("rope_theta", 10000.0));
}

Result<LlamaConfig> read_config(const std::string& config_json) {
  ConfigReader config(config_json);
  LlamaConfig c{};
  c.vocabulary = config.integer("vocab_size", 32000, 1, kMost);
  c.hidden = config.integer("hidden_size", 4096, 1, kMost);
  c.intermediate = config.integer("intermediate_size", 11008, 1, kMost);
  c.layers = config.integer("num_hidden_layers", 32, 1, 100000);
  c.heads = config.integer("num_attention_heads", 32, 1, kMost);
  c.kv_heads = config.integer("num_key_value_heads", c.heads, 1, kMost);
  c.head_dim = config.integer("head_dim", c.hidden / c.heads, 1, 1 << 16);
  c.context = config.integer("max_position_embeddings", 2048, 1, int64_t{1} << 31);
  c.epsilon = config.positive("rms_norm_eps", 1e-6);
  c.theta = rope_theta(config);
  c.tied = config.boolean("tie_word_embeddings", false);
  c.attention_bias = config.boolean("attention_bias", false);
  c.mlp_bias = config.boolean("mlp_bias", false);
  c.interleaved = config.boolean("rope_interleaved", false);
  const std::string activation = config.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    config.refuse("hidden_act", "silu", activation);
  }
  if (config.positive("partial_rotary_factor", 1.0) != 1.0 ||
      config.positive("rope_parameters/partial_rotary_factor", 1.0) != 1.0) {
    config.refuse("partial_rotary_factor", "1", "another");
  }
  if (config.has("quantization_config")) {
    config.refuse(
        "quantization_config", "float checkpoints and its own artifacts",
        cat("quant_method ", config.text("quantization_config/quant_method", "?")));
  }
  if (!config.status().ok()) return config.status();
  if (c.heads % c.kv_heads != 0 || c.head_dim % 2 != 0) {
    return error(StatusCode::invalid_argument,
                 "[models] config.json: num_key_value_heads must "
                 "divide num_attention_heads and head_dim be even; found ",
                 c.kv_heads, ", ", c.heads, " and ", c.head_dim);
  }
  return c;
}

// Adds nodes that make one value each, called as the node unless said otherwise.
class Builder {
 public:
  explicit Builder(Program& program) : program_(program) {}
  void set_block(int block) { block_ = block; }

  std::string add(const char* op, const std::string& name,
                  std::vector<std::string> inputs,
                  std::map<std::string, std::string> parameters,
                  std::map<std::string, Attribute> attributes, std::string output = "") {
    if (output.empty()) output = name;
    program_.nodes.push_back({op,
                              name,
                              block_,
                              std::move(inputs),
                              {output},
                              std::move(parameters),
                              std::move(attributes)});
    return output;
  }
  std::string linear(const std::string& name, const std::string& input, int64_t rows,
                     bool bias) {
    std::map<std::string, std::string> parameters = {{"weight", name + ".weight"}};
    if (bias) parameters["bias"] = name + ".bias";
    return add("linear", name, {input}, parameters, {{"out_features", rows}});
  }
  std::string norm(const std::string& name, const std::string& input, double epsilon) {
    return add("rms_norm", name, {input}, {{"weight", name + ".weight"}},
               {{"epsilon", epsilon}});
  }

 private:
  Program& program_;
  int block_ = kFirstBlock;
};

std::string decoder_layer(Builder& build, const LlamaConfig& c, const std::string& layer,
                          const std::string& x) {
  const std::string attention = layer + ".self_attn";
  const std::string mlp = layer + ".mlp";
  const std::string h = build.norm(layer + ".input_layernorm", x, c.epsilon);
  const std::string q =
      build.linear(attention + ".q_proj", h, c.heads * c.head_dim, c.attention_bias);
  const std::string k =
      build.linear(attention + ".k_proj", h, c.kv_heads * c.head_dim, c.attention_bias);
  const std::string v =
      build.linear(attention + ".v_proj", h, c.kv_heads * c.head_dim, c.attention_bias);
  const std::map<std::string, Attribute> rope = {{"head_dim", c.head_dim},
                                                 {"theta", c.theta},
                                                 {"interleaved", int64_t{c.interleaved}}};
  const std::string q_rope = build.add("rope", attention + ".q_rope", {q}, {}, rope);
  const std::string k_rope = build.add("rope", attention + ".k_rope", {k}, {}, rope);
  const std::string mixed =
      build.add("attention", attention + ".attention", {q_rope, k_rope, v}, {},
                {{"heads", c.heads},
                 {"kv_heads", c.kv_heads},
                 {"head_dim", c.head_dim},
                 {"scale", 1.0 / std::sqrt(static_cast<double>(c.head_dim))},
                 {"state", attention + ".cache"}});
  const std::string o =
      build.linear(attention + ".o_proj", mixed, c.hidden, c.attention_bias);
  const std::string middle =
      build.add("add", layer + ".attention_residual", {x, o}, {}, {});
  const std::string post =
      build.norm(layer + ".post_attention_layernorm", middle, c.epsilon);
  const std::string gate =
      build.linear(mlp + ".gate_proj", post, c.intermediate, c.mlp_bias);
  const std::string up = build.linear(mlp + ".up_proj", post, c.intermediate, c.mlp_bias);
  const std::string gated = build.add("silu_mul", mlp + ".silu_mul", {gate, up}, {}, {});
  const std::string down = build.linear(mlp + ".down_proj", gated, c.hidden, c.mlp_bias);
  return build.add("add", layer + ".mlp_residual", {middle, down}, {}, {});
}

}  // namespace

Result<Program> llama_program(const std::string& config_json) {
  NIBBLE_ASSIGN_OR_RETURN(const LlamaConfig c, read_config(config_json));
  Program program;
  program.architecture = "LlamaForCausalLM";
  program.context_length = c.context;
  program.vocabulary = c.vocabulary;
  program.inputs = {{"input_ids", DType::i64, {"batch", "sequence"}}};
  program.outputs = {
      {"logits", DType::f32, {"batch", "sequence", std::to_string(c.vocabulary)}}};
  Builder build(program);
  const std::string embedding = "model.embed_tokens.weight";
  std::string x = build.add("embedding", "model.embed_tokens", {"input_ids"},
                            {{"weight", embedding}}, {{"features", c.hidden}});
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = cat("model.layers.", i);
    build.set_block(static_cast<int>(i));
    x = decoder_layer(build, c, layer, x);
    program.states.push_back({layer + ".self_attn.cache", c.kv_heads, c.head_dim});
  }
  build.set_block(kLastBlock);
  x = build.norm("model.norm", x, c.epsilon);
  build.add("linear", "lm_head", {x}, {{"weight", c.tied ? embedding : "lm_head.weight"}},
            {{"out_features", c.vocabulary}}, "logits");
  NIBBLE_RETURN_IF_ERROR(check_program(program));
  return program;
}

bool llama_recognises(const std::map<std::string, Tensor>& tensors) {
  return tensors.count("model.embed_tokens.weight") > 0 &&
         tensors.count("model.layers.0.self_attn.q_proj.weight") > 0 &&
         tensors.count("model.layers.0.mlp.gate_proj.weight") > 0;
}

Result<std::string> llama_config(const std::map<std::string, Tensor>&) {
  return error(
      StatusCode::not_found,
      "[models] LlamaForCausalLM: its heads and rope are in config.json, which must "
      "lie beside the weights; found weights alone; give the directory");
}

bool llama_ignores(const std::string& tensor, const Program& program) {
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
