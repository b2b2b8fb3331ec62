#include "export/gguf/gguf_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <optional>

#include "kernels/base/json.h"
#include "kernels/ops/rope/rope.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

template <class... Parts>
Status damaged(const Parts&... parts) {
  return error(StatusCode::data_loss, "[gguf] ", parts..., "; the file is damaged");
}
template <class... Parts>
Status unsupported(const Parts&... parts) {
  return error(StatusCode::unsupported, "[gguf] ", parts...);
}

// Keys whose meaning is in config.json, or that change nothing.
constexpr std::string_view kKnown[] = {
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "vocab_size",
    "tensor_data_layout",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
};

// A number that was rounded to float on its way, as a person wrote it: 1e-05, not
// 9.99999974e-06.
double shortest(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, static_cast<float>(value));
  double result = value;
  std::from_chars(text, end.ptr, result);
  return result;
}

class Keys {
 public:
  Keys(const GgufMetadata& metadata, std::string prefix)
      : metadata_(metadata), prefix_(std::move(prefix)) {}
  const Status& status() const { return status_; }

  bool has(const char* key) const { return find(prefix_ + key) != nullptr; }

  // The first wrong one is kept as the status; what is returned then is 1.
  int64_t integer(const char* key, std::optional<int64_t> otherwise = {}) {
    const GgufValue* value = find(prefix_ + key);
    if (value == nullptr && otherwise) return *otherwise;
    if (value == nullptr) return missing(key);
    if (const auto number = whole(*value)) return checked(key, *number);
    // One a layer: all of one size is what nibble has.
    std::vector<int64_t> list;
    if (const auto* u = std::get_if<std::vector<uint64_t>>(value))
      for (const uint64_t v : *u) list.push_back(static_cast<int64_t>(v));
    if (const auto* i = std::get_if<std::vector<int64_t>>(value)) list = *i;
    if (list.empty()) return wrong(key, "a whole number");
    if (std::adjacent_find(list.begin(), list.end(), std::not_equal_to<>()) != list.end())
      return refuse(key, "one for all layers was required; found several");
    return checked(key, list[0]);
  }
  double real(const char* key, std::optional<double> otherwise = {}) {
    const GgufValue* value = find(prefix_ + key);
    if (value == nullptr && otherwise) return *otherwise;
    if (value == nullptr) return static_cast<double>(missing(key));
    const auto* number = std::get_if<double>(value);
    if (number != nullptr && *number > 0 && std::isfinite(*number))
      return shortest(*number);
    return static_cast<double>(wrong(key, "a positive number"));
  }
  std::string text(const char* key, const char* otherwise) {
    const GgufValue* value = find(prefix_ + key);
    if (value == nullptr) return otherwise;
    const auto* found = std::get_if<std::string_view>(value);
    if (found != nullptr) return std::string(*found);
    wrong(key, "a text");
    return otherwise;
  }

  Status check_known() const {
    for (const auto& [key, value] : metadata_.values) {
      if (key.rfind(prefix_, 0) != 0) continue;
      const std::string_view rest = std::string_view(key).substr(prefix_.size());
      if (std::find(std::begin(kKnown), std::end(kKnown), rest) != std::end(kKnown))
        continue;
      return unsupported("key ", key,
                         ": nibble does not know what it asks of the model, and leaving "
                         "it out could give other results");
    }
    return ok_status();
  }

 private:
  const GgufValue* find(const std::string& key) const {
    const auto found = metadata_.values.find(key);
    return found == metadata_.values.end() ? nullptr : &found->second;
  }
  static std::optional<int64_t> whole(const GgufValue& value) {
    if (const auto* u = std::get_if<uint64_t>(&value)) return static_cast<int64_t>(*u);
    if (const auto* i = std::get_if<int64_t>(&value)) return *i;
    return {};
  }
  int64_t checked(const char* key, int64_t value) {
    constexpr int64_t kMost = int64_t{1} << 31;  // products stay inside 64 bits
    return value >= 1 && value <= kMost ? value : wrong(key, "1 to 2^31");
  }
  int64_t missing(const char* key) {
    if (status_.ok())
      status_ = damaged("key ", prefix_, key, ": is required; found none");
    return 1;
  }
  int64_t wrong(const char* key, const char* required) {
    if (status_.ok())
      status_ =
          damaged("key ", prefix_, key, ": ", required, " was required; found another");
    return 1;
  }
  int64_t refuse(const char* key, const char* what) {
    if (status_.ok()) status_ = unsupported("key ", prefix_, key, ": ", what);
    return 1;
  }

  const GgufMetadata& metadata_;
  std::string prefix_;
  Status status_;
};

// The largest ratio by which `shape` misses the divisors of the file.
double mismatch(const RopeShape& shape, const std::vector<double>& divisors) {
  RopeShape plain = shape;
  plain.scaling = "";
  const std::vector<double> f = rope_frequencies(plain), scaled = rope_frequencies(shape);
  double worst = 0;
  for (size_t i = 0; i < divisors.size(); ++i)
    worst = std::max(worst, std::abs(f[i] / scaled[i] / divisors[i] - 1));
  return worst;
}

// llama3's parameters from its divisors: between the two bounds 1 / divisor is a straight
// line in the turns of a pair over the original context.
std::optional<RopeShape> llama3_shape(const std::vector<double>& divisors, double theta,
                                      int64_t head_dim, int64_t original_context) {
  constexpr double kRounding = 1e-6;  // the file's are f32
  RopeShape shape{.head_dim = head_dim, .theta = theta, .scaling = "llama3"};
  shape.original_context = original_context;
  shape.factor = shortest(*std::max_element(divisors.begin(), divisors.end()));
  shape.low_frequency_factor = 1;  // of every Llama so far
  shape.high_frequency_factor = 4;
  if (mismatch(shape, divisors) < kRounding) return shape;
  std::vector<std::pair<double, double>> line;  // turns, share of the plain frequency
  const std::vector<double> f =
      rope_frequencies(RopeShape{.head_dim = head_dim, .theta = theta});
  for (size_t i = 0; i < divisors.size(); ++i) {
    const double share = (1 / divisors[i] - 1 / shape.factor) / (1 - 1 / shape.factor);
    if (share > kRounding && share < 1 - kRounding)
      line.emplace_back(static_cast<double>(original_context) * f[i] / (2 * M_PI), share);
  }
  if (line.size() < 2) return {};
  const auto [t0, s0] = line.front();
  const auto [t1, s1] = line.back();
  const double width = (t0 - t1) / (s0 - s1);
  const auto rounded = [](double v) { return std::round(v * 1e4) / 1e4; };
  shape.low_frequency_factor = rounded(t1 - s1 * width);
  shape.high_frequency_factor = rounded(t1 - s1 * width + width);
  if (mismatch(shape, divisors) < kRounding) return shape;
  return {};
}

Status read_rope(const GgufFile& file, Keys& keys, double theta, int64_t head_dim,
                 Json& config) {
  Json rope = {{"rope_theta", theta}, {"rope_type", "default"}};
  const std::string type = keys.text("rope.scaling.type", "none");
  const GgufTensor* frequencies = file.find(kRopeFrequencies);
  if (type == "linear") {
    rope["rope_type"] = "linear";
    rope["factor"] = keys.real("rope.scaling.factor");
  } else if (type != "none") {
    return unsupported("key rope.scaling.type: none or linear, or ", kRopeFrequencies,
                       ", was required; found ", type);
  }
  if (frequencies != nullptr) {
    if (frequencies->type->scheme.code != Element::f32 || type != "none" ||
        frequencies->rows() != 1 || frequencies->cols() != head_dim / 2)
      return damaged("tensor ", kRopeFrequencies, ": F32 [", head_dim / 2,
                     "] and no other scaling was required; found ",
                     frequencies->type->name, " [", frequencies->cols(), "]");
    std::vector<double> divisors;
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      float value;
      std::memcpy(&value, frequencies->bytes.data() + i * 4, 4);
      if (!(value >= 1) || !std::isfinite(value))
        return damaged("tensor ", kRopeFrequencies, ": numbers from 1 up were required; ",
                       "found ", value, " at ", i);
      divisors.push_back(value);
    }
    constexpr int64_t kLlama3 = 8192;  // positions that Llama 3 was trained on first
    const int64_t original =
        keys.integer("rope.scaling.original_context_length", kLlama3);
    const auto shape = llama3_shape(divisors, theta, head_dim, original);
    if (!shape)
      return unsupported("tensor ", kRopeFrequencies,
                         ": divisors of llama3's scaling were required; found others");
    rope["rope_type"] = "llama3";
    rope["factor"] = shape->factor;
    rope["low_freq_factor"] = shape->low_frequency_factor;
    rope["high_freq_factor"] = shape->high_frequency_factor;
    rope["original_max_position_embeddings"] = shape->original_context;
  }
  config["rope_parameters"] = rope;
  return ok_status();
}

// Mistral is a llama with a window.
const GgufArchitecture* architecture_of(const std::string& name, bool window) {
  return name == "llama" && window ? gguf_architecture_of("MistralForCausalLM")
                                   : gguf_architecture_named(name);
}

}  // namespace

Result<GgufConfig> read_gguf_config(const GgufFile& file) {
  GgufConfig out;
  Keys general(file.metadata, "general.");
  const std::string name = general.text("architecture", "");
  if (!general.has("architecture")) {
    return damaged("key general.architecture: is required; found none");
  }
  const auto window_key = file.metadata.values.find(name + ".attention.sliding_window");
  const bool window = window_key != file.metadata.values.end();
  out.architecture = architecture_of(name, window);
  if (out.architecture == nullptr) {
    std::string known;
    for (const GgufArchitecture& row : gguf_architectures()) {
      if (known.find(row.gguf) == std::string::npos)
        known += cat(known.empty() ? "" : ", ", row.gguf);
    }
    return unsupported("general.architecture: one of ", known, " was required; found ",
                       name);
  }
  Keys keys(file.metadata, name + ".");
  NIBBLE_RETURN_IF_ERROR(general.status());
  NIBBLE_RETURN_IF_ERROR(keys.check_known());
  const GgufTensor* embedding = file.find("token_embd.weight");
  if (embedding == nullptr)
    return damaged("tensor token_embd.weight: is required; found none");

  const std::string model_type = out.architecture->model_type;
  const bool mixture = model_type == "qwen3_moe";
  Json config;
  config["architectures"] = {out.architecture->architecture};
  config["model_type"] = model_type;
  config["vocab_size"] = embedding->rows();
  const int64_t hidden = keys.integer("embedding_length");
  const int64_t heads = keys.integer("attention.head_count");
  config["hidden_size"] = hidden;
  config["intermediate_size"] = keys.integer("feed_forward_length");
  config["num_hidden_layers"] = keys.integer("block_count");
  config["num_attention_heads"] = heads;
  config["num_key_value_heads"] = keys.integer("attention.head_count_kv", heads);
  out.head_dim =
      keys.integer("attention.key_length", std::max<int64_t>(1, hidden / heads));
  config["head_dim"] = out.head_dim;
  config["hidden_act"] = "silu";
  config["max_position_embeddings"] = keys.integer("context_length");
  config["rms_norm_eps"] = keys.real("attention.layer_norm_rms_epsilon");
  const double theta = keys.real("rope.freq_base", 10000.0);
  NIBBLE_RETURN_IF_ERROR(read_rope(file, keys, theta, out.head_dim, config));
  if (keys.integer("attention.value_length", out.head_dim) != out.head_dim ||
      keys.integer("rope.dimension_count", out.head_dim) != out.head_dim) {
    return unsupported(
        "keys ", name,
        ".attention.value_length and rope.dimension_count: ", "the size of a head, ",
        out.head_dim, ", was required; found others");
  }
  if (window) {
    config["sliding_window"] = keys.integer("attention.sliding_window");
    if (model_type != "mistral") {
      config["use_sliding_window"] = true;
      config["max_window_layers"] = 0;
    }
  }
  if (mixture) {
    out.experts = keys.integer("expert_count");
    config["num_experts"] = out.experts;
    config["num_experts_per_tok"] = keys.integer("expert_used_count");
    config["moe_intermediate_size"] = keys.integer("expert_feed_forward_length");
    config["norm_topk_prob"] = true;
    config["decoder_sparse_step"] = 1;
  } else if (keys.integer("expert_count", 1) > 1) {
    return unsupported("key ", name,
                       ".expert_count: a model without experts was required; ",
                       "found some");
  }
  NIBBLE_RETURN_IF_ERROR(keys.status());
  if (model_type != "qwen2") {
    config["attention_bias"] = file.find("blk.0.attn_output.bias") != nullptr;
    config["mlp_bias"] = file.find("blk.0.ffn_gate.bias") != nullptr;
  }
  config["tie_word_embeddings"] = file.find("output.weight") == nullptr;
  const auto id = [&](const char* key, const char* field) {
    const auto found = file.metadata.values.find(key);
    if (found == file.metadata.values.end()) return;
    if (const auto* number = std::get_if<uint64_t>(&found->second))
      config[field] = *number;
  };
  id("tokenizer.ggml.bos_token_id", "bos_token_id");
  id("tokenizer.ggml.eos_token_id", "eos_token_id");
  out.json = config.dump(2) + "\n";
  return out;
}

}  // namespace nibble
