#include "recipes/models/llama2c.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/base/json.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint32_t kMagic = 0x616b3432;  // versions 1 and 2
constexpr double kTheta = 10000.0;       // llama2.c knows no other

struct Header {
  int version = 0;
  int64_t dim = 0, hidden = 0, layers = 0, heads = 0, kv_heads = 0, vocabulary = 0,
          context = 0;
  bool tied = true;
  size_t bytes = 28;
  int64_t head_dim() const { return dim / heads; }
};

int32_t word_at(const Bytes& file, size_t offset) {
  int32_t word;
  std::memcpy(&word, file.data() + offset, sizeof(word));
  return word;
}

bool plausible(const Header& h) {
  const int64_t most = 1 << 20;
  const auto inside = [&](int64_t value) { return value > 0 && value <= most; };
  return inside(h.dim) && inside(h.hidden) && inside(h.layers) && inside(h.heads) &&
         inside(h.kv_heads) && inside(h.vocabulary) && inside(h.context) &&
         h.layers <= 1000 && h.dim % h.heads == 0 && h.heads % h.kv_heads == 0 &&
         h.head_dim() % 2 == 0;
}

Header read_header(const Bytes& file) {
  Header h;
  if (file.size() < 28) return h;
  size_t at = 0;
  if (static_cast<uint32_t>(word_at(file, 0)) == kMagic && file.size() >= 256) {
    h.version = word_at(file, 4);
    h.bytes = 256;
    at = 8;
  }
  int64_t* fields[] = {&h.dim,      &h.hidden,     &h.layers, &h.heads,
                       &h.kv_heads, &h.vocabulary, &h.context};
  for (int64_t* field : fields) {
    *field = word_at(file, at);
    at += 4;
  }
  if (h.version == 0) {
    h.tied = h.vocabulary > 0;  // a negative count says: an lm_head of its own
    h.vocabulary = std::abs(h.vocabulary);
  } else {
    h.tied = static_cast<uint8_t>(file.data()[at]) != 0;
  }
  return h;
}

struct Part {
  std::string name;  // with # for the layer's number; "" is skipped
  std::vector<int64_t> shape;
  bool per_layer = false;
};

std::vector<Part> parts(const Header& h) {
  const int64_t kv = h.kv_heads * h.head_dim();
  const Part embedding = {"model.embed_tokens.weight", {h.vocabulary, h.dim}};
  const Part attention_norm = {"model.layers.#.input_layernorm.weight", {h.dim}, true};
  const Part mlp_norm = {"model.layers.#.post_attention_layernorm.weight", {h.dim}, true};
  const Part norm = {"model.norm.weight", {h.dim}};
  const Part q = {"model.layers.#.self_attn.q_proj.weight", {h.dim, h.dim}, true};
  const Part k = {"model.layers.#.self_attn.k_proj.weight", {kv, h.dim}, true};
  const Part v = {"model.layers.#.self_attn.v_proj.weight", {kv, h.dim}, true};
  const Part o = {"model.layers.#.self_attn.o_proj.weight", {h.dim, h.dim}, true};
  const Part gate = {"model.layers.#.mlp.gate_proj.weight", {h.hidden, h.dim}, true};
  const Part down = {"model.layers.#.mlp.down_proj.weight", {h.dim, h.hidden}, true};
  const Part up = {"model.layers.#.mlp.up_proj.weight", {h.hidden, h.dim}, true};
  const Part rope_table = {"", {h.context, h.head_dim() / 2}};
  std::vector<Part> order;
  if (h.version == 0) {
    order = {embedding, attention_norm, q,  k,    v,          o,         mlp_norm,
             gate,      down,           up, norm, rope_table, rope_table};
  } else {
    order = {attention_norm, mlp_norm, norm, embedding, q, k, v, o, gate, down, up};
  }
  if (!h.tied) order.push_back({"lm_head.weight", {h.vocabulary, h.dim}});
  return order;
}

int64_t numel(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

// Version 0 stores cos and sin of every position: they must be those that nibble
// computes.
Status check_rope_tables(const Bytes& file, const Header& h, size_t at,
                         const std::string& path) {
  const int64_t half = h.head_dim() / 2;
  const size_t table = static_cast<size_t>(h.context * half) * 4;
  for (int64_t position = 0; position < h.context; ++position) {
    for (int64_t i = 0; i < half; ++i) {
      const size_t offset = at + static_cast<size_t>(position * half + i) * 4;
      float cosine, sine;
      std::memcpy(&cosine, file.data() + offset, 4);
      std::memcpy(&sine, file.data() + offset + table, 4);
      const double frequency = std::pow(
          kTheta, -2.0 * static_cast<double>(i) / static_cast<double>(h.head_dim()));
      const double angle = static_cast<double>(position) * frequency;
      // The tables are f32 cosines of f32 angles: off by about position * 2^-24.
      const double allowed = 1e-4 + static_cast<double>(position) * 1e-6;
      if (!(std::abs(cosine - std::cos(angle)) <= allowed) ||
          !(std::abs(sine - std::sin(angle)) <= allowed)) {
        return error(StatusCode::unsupported, "[models] ", path,
                     ": the rope table must be theta 10000's; at position ", position,
                     ", pair ", i, " found cos ", cosine, ", sin ", sine);
      }
    }
  }
  return ok_status();
}

std::string synthesised_config(const Header& h) {
  Json config;
  config["architectures"] = Json::array({"LlamaForCausalLM"});
  config["model_type"] = "llama";
  config["vocab_size"] = h.vocabulary;
  config["hidden_size"] = h.dim;
  config["intermediate_size"] = h.hidden;
  config["num_hidden_layers"] = h.layers;
  config["num_attention_heads"] = h.heads;
  config["num_key_value_heads"] = h.kv_heads;
  config["head_dim"] = h.head_dim();
  config["hidden_act"] = "silu";
  config["max_position_embeddings"] = h.context;
  config["rms_norm_eps"] = 1e-5;
  config["rope_theta"] = kTheta;
  config["rope_interleaved"] = true;
  config["tie_word_embeddings"] = h.tied;
  config["bos_token_id"] = 1;
  config["eos_token_id"] = 2;
  return config.dump(2) + "\n";
}

}  // namespace

bool is_llama2c(const Bytes& file) {
  const Header h = read_header(file);
  return plausible(h) && (h.version == 0 || h.version == 1 || h.version == 2);
}

Result<Llama2c> read_llama2c(const Bytes& file, const std::string& path) {
  const Header h = read_header(file);
  if (h.version == 2) {
    return error(
        StatusCode::unsupported, "[models] ", path,
        ": nibble reads llama2.c versions 0 and 1 (fp32); found version 2, which is "
        "quantized already; export version 0 or 1 from the float model");
  }
  const std::vector<Part> order = parts(h);
  uint64_t required = h.bytes;
  for (const Part& part : order) {
    required +=
        static_cast<uint64_t>((part.per_layer ? h.layers : 1) * numel(part.shape)) * 4;
  }
  if (required != file.size()) {
    return error(StatusCode::data_loss, "[models] ", path,
                 ": a llama2.c file with this header needs ", required, " bytes; found ",
                 file.size(), "; the file is ",
                 file.size() < required ? "truncated" : "damaged");
  }
  Llama2c model;
  size_t at = h.bytes;
  bool rope_checked = false;
  for (const Part& part : order) {
    const size_t size = static_cast<size_t>(numel(part.shape)) * 4;
    if (part.name.empty()) {
      if (!rope_checked) NIBBLE_RETURN_IF_ERROR(check_rope_tables(file, h, at, path));
      rope_checked = true;
      at += size;
      continue;
    }
    for (int64_t layer = 0; layer < (part.per_layer ? h.layers : 1); ++layer) {
      std::string name = part.name;
      if (part.per_layer) name.replace(name.find('#'), 1, std::to_string(layer));
      model.tensors[name] = {DType::f32, part.shape, file.slice(at, size)};
      at += size;
    }
  }
  model.config_json = synthesised_config(h);
  return model;
}

}  // namespace nibble
