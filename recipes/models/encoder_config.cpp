#include "recipes/models/encoder_config.h"

#include "kernels/base/file.h"
#include "kernels/base/json.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

Result<Json> read_json(const fs::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  Json json = parse_json(text);
  if (json.is_discarded() || (!json.is_object() && !json.is_array())) {
    return error(StatusCode::data_loss, "[models] ", path.string(),
                 ": must be JSON; found something else; the file is damaged");
  }
  return json;
}

Status unsupported(const fs::path& path, const std::string& required,
                   const std::string& found) {
  return error(StatusCode::unsupported, "[models] ", path.string(), ": nibble supports ",
               required, "; found ", found);
}

// The text of a field, "" when it is absent or no text.
std::string text_of(const Json& json, const char* field) {
  const auto found = json.is_object() ? json.find(field) : json.end();
  return json.is_object() && found != json.end() && found->is_string()
             ? found->get<std::string>()
             : "";
}

// sentence-transformers writes pooling_mode: "mean", and wrote pooling_mode_mean_tokens:
// true.
Result<std::string> pooling_of(const fs::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(const Json json, read_json(path));
  const std::string required = "pooling by mean or cls, one of them";
  const std::pair<const char*, const char*> kFlags[] = {
      {"pooling_mode_mean_tokens", "mean"},
      {"pooling_mode_cls_token", "cls"},
      {"pooling_mode_max_tokens", "max"},
      {"pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"},
      {"pooling_mode_weightedmean_tokens", "weightedmean"},
      {"pooling_mode_lasttoken", "lasttoken"}};
  std::string mode = text_of(json, "pooling_mode");
  if (mode.empty()) {
    for (const auto& [flag, name] : kFlags) {
      const auto found = json.is_object() ? json.find(flag) : json.end();
      if (json.is_object() && found != json.end() && found->is_boolean() &&
          found->get<bool>()) {
        mode += (mode.empty() ? "" : " and ") + std::string(name);
      }
    }
  }
  if (mode != "mean" && mode != "cls") {
    return unsupported(path, required, mode.empty() ? "no pooling_mode" : mode);
  }
  return mode;
}

}  // namespace

Result<std::string> with_tensor_prefix(const std::string& config_json,
                                       const std::map<std::string, Tensor>& tensors) {
  const std::string prefix = bert_tensor_prefix(tensors);
  Json config = parse_json(config_json);
  if (prefix.empty() || !config.is_object()) return config_json;
  config["tensor_prefix"] = prefix;
  return config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

bool is_sentence_transformer(const fs::path& directory) {
  std::error_code ignored;
  return fs::exists(directory / "modules.json", ignored);
}

Result<std::string> with_sentence_transformers(const std::string& config_json,
                                               const fs::path& directory) {
  Json config = parse_json(config_json);
  if (!config.is_object()) {
    return error(StatusCode::data_loss, "[models] ", (directory / "config.json").string(),
                 ": must be one JSON object; found something else; the file is damaged");
  }
  const fs::path modules_file = directory / "modules.json";
  NIBBLE_ASSIGN_OR_RETURN(const Json modules, read_json(modules_file));
  Json settings = Json::object();
  const std::string required = "the modules Transformer, Pooling and Normalize, in this order";
  size_t stage = 0;  // of: Transformer, Pooling, Normalize
  for (const Json& module : modules) {
    const std::string type = text_of(module, "type");
    const std::string name = type.substr(type.rfind('.') + 1);
    const std::string path = text_of(module, "path");
    if (name == "Transformer" && stage == 0) {
      if (!path.empty()) {
        return unsupported(modules_file, "a Transformer whose files lie beside it",
                           "path " + path);
      }
      stage = 1;
    } else if (name == "Pooling" && stage == 1) {
      NIBBLE_ASSIGN_OR_RETURN(const std::string pooling,
                              pooling_of(directory / path / "config.json"));
      settings["pooling"] = pooling;
      stage = 2;
    } else if (name == "Normalize" && stage == 2) {
      settings["normalize"] = true;
      stage = 3;
    } else {
      return unsupported(modules_file, required, type.empty() ? "no type" : type);
    }
  }
  if (stage < 2) return unsupported(modules_file, required, "no Pooling");
  const fs::path limits = directory / "sentence_bert_config.json";
  std::error_code ignored;
  if (fs::exists(limits, ignored)) {
    NIBBLE_ASSIGN_OR_RETURN(const Json json, read_json(limits));
    const auto length = json.is_object() ? json.find("max_seq_length") : json.end();
    if (json.is_object() && length != json.end() && length->is_number_integer()) {
      settings["max_seq_length"] = *length;
    }
  }
  config["sentence_transformers"] = std::move(settings);
  return config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace nibble
