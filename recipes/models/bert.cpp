// BertModel: an encoder of x = LN(x + Attention(x)); x = LN(x + W_out gelu(W_in x)), over
// words, token types and learned positions. Fields and defaults as Hugging Face's
// config.json has them; nibble's own fields, which the loader adds (encoder_config.h):
// tensor_prefix ("bert." where the checkpoint is a model with a head) and
// sentence_transformers {pooling, normalize, max_seq_length}.
#include <cmath>

#include "recipes/models/architecture.h"
#include "recipes/models/config_reader.h"
#include "recipes/models/encoder_config.h"
#include "recipes/models/graph_builder.h"

namespace nibble {
namespace {

constexpr int64_t kMost = int64_t{1}
                          << 24;  // of any one size: keeps products inside 64 bits

struct BertConfig {
  int64_t vocabulary, hidden, intermediate, layers, heads, positions, types, context;
  double epsilon;
  std::string activation;  // the op: gelu or relu
  bool tanh;
  std::string prefix, pooling;  // pooling "": hidden states
  bool normalize;
};

void read_activation(ConfigReader& config, BertConfig& c) {
  const std::string name = config.text("hidden_act", "gelu");
  c.activation = name == "relu" ? "relu" : "gelu";
  c.tanh = name == "gelu_new" || name == "gelu_pytorch_tanh";
  if (!c.tanh && name != "gelu" && name != "relu") {
    config.refuse("hidden_act", "gelu, gelu_new, gelu_pytorch_tanh and relu", name);
  }
}

Result<BertConfig> read_config(const std::string& config_json) {
  ConfigReader config(config_json);
  BertConfig c{};
  c.vocabulary = config.integer("vocab_size", 30522, 1, kMost);
  c.hidden = config.integer("hidden_size", 768, 1, kMost);
  c.intermediate = config.integer("intermediate_size", 3072, 1, kMost);
  c.layers = config.integer("num_hidden_layers", 12, 1, 100000);
  c.heads = config.integer("num_attention_heads", 12, 1, kMost);
  c.positions = config.integer("max_position_embeddings", 512, 1, kMost);
  c.types = config.integer("type_vocab_size", 2, 1, kMost);
  c.epsilon = config.positive("layer_norm_eps", 1e-12);
  read_activation(config, c);
  const std::string positions = config.text("position_embedding_type", "absolute");
  if (positions != "absolute") {
    config.refuse("position_embedding_type", "absolute", positions);
  }
  for (const char* field : {"is_decoder", "add_cross_attention"}) {
    if (config.boolean(field, false)) config.refuse(field, "false: an encoder", "true");
  }
  if (config.has("quantization_config")) {
    config.refuse(
        "quantization_config", "float checkpoints and its own artifacts",
        cat("quant_method ", config.text("quantization_config/quant_method", "?")));
  }
  c.prefix = config.text("tensor_prefix", "");
  c.pooling = config.text("sentence_transformers/pooling", "");
  if (!c.pooling.empty() && c.pooling != "mean" && c.pooling != "cls") {
    config.refuse("sentence_transformers/pooling", "mean and cls", c.pooling);
  }
  c.normalize = config.boolean("sentence_transformers/normalize", false);
  c.context = config.integer("sentence_transformers/max_seq_length", c.positions, 1,
                             c.positions);
  if (!config.status().ok()) return config.status();
  if (c.hidden % c.heads != 0) {
    return error(StatusCode::invalid_argument,
                 "[models] config.json: num_attention_heads must divide hidden_size; "
                 "found ",
                 c.heads, " and ", c.hidden);
  }
  return c;
}

std::string layer_norm(GraphBuilder& build, const std::string& name,
                       const std::string& input, double epsilon) {
  return build.add("layer_norm", name, {input},
                   {{"weight", name + ".weight"}, {"bias", name + ".bias"}},
                   {{"epsilon", epsilon}});
}

std::string embeddings(GraphBuilder& build, const BertConfig& c) {
  const std::string at = c.prefix + "embeddings.";
  const auto table = [&](const char* op, const char* name, const char* input,
                         int64_t rows) {
    return build.add(op, at + name, {input}, {{"weight", at + name + ".weight"}},
                     {{"features", c.hidden}, {"rows", rows}});
  };
  const std::string words =
      table("embedding", "word_embeddings", "input_ids", c.vocabulary);
  const std::string types =
      table("embedding", "token_type_embeddings", "token_type_ids", c.types);
  const std::string positions =
      table("position_embedding", "position_embeddings", "input_ids", c.positions);
  const std::string typed = build.add("add", at + "words_and_types", {words, types}, {}, {});
  const std::string sum = build.add("add", at + "sum", {typed, positions}, {}, {});
  return layer_norm(build, at + "LayerNorm", sum, c.epsilon);
}

std::string encoder_layer(GraphBuilder& build, const BertConfig& c,
                          const std::string& layer, const std::string& x,
                          const std::string& output) {
  const std::string self = layer + ".attention.self";
  const std::string q = build.linear(self + ".query", x, c.hidden, true);
  const std::string k = build.linear(self + ".key", x, c.hidden, true);
  const std::string v = build.linear(self + ".value", x, c.hidden, true);
  const int64_t head_dim = c.hidden / c.heads;
  const std::string mixed =
      build.add("attention", self + ".attention", {q, k, v}, {},
                {{"heads", c.heads},
                 {"kv_heads", c.heads},
                 {"head_dim", head_dim},
                 {"scale", 1.0 / std::sqrt(static_cast<double>(head_dim))},
                 {"causal", int64_t{0}}});
  const std::string attention = layer + ".attention.output";
  const std::string o = build.linear(attention + ".dense", mixed, c.hidden, true);
  const std::string middle = build.add("add", attention + ".residual", {x, o}, {}, {});
  const std::string h = layer_norm(build, attention + ".LayerNorm", middle, c.epsilon);
  const std::string wide =
      build.linear(layer + ".intermediate.dense", h, c.intermediate, true);
  const std::string active = build.add(
      c.activation.c_str(), layer + ".intermediate.activation", {wide}, {},
      c.tanh ? std::map<std::string, Attribute>{{"tanh", int64_t{1}}}
             : std::map<std::string, Attribute>{});
  const std::string down = build.linear(layer + ".output.dense", active, c.hidden, true);
  const std::string sum = build.add("add", layer + ".output.residual", {h, down}, {}, {});
  const std::string norm = layer + ".output.LayerNorm";
  return build.add("layer_norm", norm, {sum},
                   {{"weight", norm + ".weight"}, {"bias", norm + ".bias"}},
                   {{"epsilon", c.epsilon}}, output);
}

}  // namespace

Result<Program> bert_program(const std::string& config_json) {
  NIBBLE_ASSIGN_OR_RETURN(const BertConfig c, read_config(config_json));
  Program program;
  program.architecture = "BertModel";
  program.context_length = c.context;
  program.vocabulary = c.vocabulary;
  program.inputs = {{"input_ids", DType::i64, {"batch", "sequence"}},
                    {"token_type_ids", DType::i64, {"batch", "sequence"}}};
  const std::string width = std::to_string(c.hidden);
  const bool pools = !c.pooling.empty();
  if (pools) {
    program.outputs = {{"sentence_embedding", DType::f32, {"batch", width}}};
  } else {
    program.outputs = {{"last_hidden_state", DType::f32, {"batch", "sequence", width}}};
  }
  GraphBuilder build(program);
  std::string x = embeddings(build, c);
  for (int64_t i = 0; i < c.layers; ++i) {
    build.set_block(static_cast<int>(i));
    const bool last = i + 1 == c.layers && !pools;
    x = encoder_layer(build, c, cat(c.prefix, "encoder.layer.", i), x,
                      last ? "last_hidden_state" : "");
  }
  if (pools) {
    build.set_block(kLastBlock);
    x = build.add(c.pooling == "mean" ? "mean_pool" : "first_token", "pooling", {x}, {}, {},
                  c.normalize ? "" : "sentence_embedding");
    if (c.normalize) {
      build.add("l2_normalize", "normalize", {x}, {}, {}, "sentence_embedding");
    }
  }
  NIBBLE_RETURN_IF_ERROR(check_program(program));
  return program;
}

bool bert_recognises(const std::map<std::string, Tensor>& tensors) {
  const std::string prefix = bert_tensor_prefix(tensors);
  return tensors.count(prefix + "embeddings.word_embeddings.weight") > 0 &&
         tensors.count(prefix + "encoder.layer.0.attention.self.query.weight") > 0;
}

Result<std::string> bert_config(const std::map<std::string, Tensor>&) {
  return error(StatusCode::not_found,
               "[models] BertModel: its heads and activation are in config.json, which "
               "must lie beside the weights; found weights alone; give the directory");
}

// The heads of pretraining: what [CLS] goes through for the next sentence, and what makes
// words of hidden states. An embedding uses neither.
bool bert_ignores(const std::string& tensor, const Program& program) {
  const std::string& first = program.nodes.front().name;
  const std::string prefix = first.substr(0, first.find("embeddings."));
  return tensor == prefix + "embeddings.position_ids" ||
         tensor.rfind(prefix + "pooler.", 0) == 0 || tensor.rfind("cls.", 0) == 0;
}

std::string bert_tensor_prefix(const std::map<std::string, Tensor>& tensors) {
  const std::string prefix = "bert.";
  return tensors.count(prefix + "embeddings.word_embeddings.weight") > 0 ? prefix : "";
}

}  // namespace nibble
