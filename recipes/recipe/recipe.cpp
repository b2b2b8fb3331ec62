#include "recipes/recipe/recipe.h"

#include <yaml-cpp/yaml.h>

#include <filesystem>
#include <set>

#include "kernels/base/file.h"
#include "kernels/scheme/kv_scheme.h"
#include "recipes/data/signals.h"
#include "recipes/recipe/nearest_name.h"
#include "recipes/recipe/settings.h"
#include "recipes/report/embedded_files.h"

namespace nibble {
namespace {

constexpr const char* kRuleKeys[] = {"pattern", "weight",   "method",  "input",
                                     "reason",  "low_rank", "optional"};

// Where in the recipe something stands, as messages say it: "my.yaml:7".
std::string place(const std::string& source, const YAML::Mark& mark) {
  return cat(source, ":", mark.line + 1);
}

template <class... Parts>
Status wrong(const std::string& where, const Parts&... parts) {
  return error(StatusCode::invalid_argument, "[recipe] ", where, ": ", parts...);
}

const char* type_name(const YAML::Node& node) {
  if (node.IsMap()) return "a map";
  if (node.IsSequence()) return "a list";
  if (node.IsScalar()) return "one value";
  return "nothing";
}

std::vector<std::string> setting_keys() {
  std::vector<std::string> keys;
  for (const Setting& setting : recipe_settings()) keys.emplace_back(setting.key);
  return keys;
}

const Setting* find_setting(const std::string& key) {
  for (const Setting& setting : recipe_settings()) {
    if (key == setting.key) return &setting;
  }
  return nullptr;
}

// The keys a section knows: of "" the top level's with sections once, of "train" its own.
std::vector<std::string> keys_below(const std::string& section) {
  std::vector<std::string> keys;
  std::set<std::string> seen;
  for (const std::string& key : setting_keys()) {
    if (!section.empty() && key.rfind(section + ".", 0) != 0) continue;
    const std::string rest = section.empty() ? key : key.substr(section.size() + 1);
    const std::string top = rest.substr(0, rest.find('.'));
    if (seen.insert(top).second) keys.push_back(top);
  }
  if (section.empty()) {
    keys.emplace_back("layers");
    keys.emplace_back("seed");
  }
  return keys;
}

Status prefixed(const std::string& where, const Status& status) {
  return Status(status.code(), "[recipe] " + where + ": " + status.message());
}

// Does the setting change what happens, as the recipe stands?
bool has_effect(const Recipe& recipe, const std::string& key) {
  const std::set<std::string> parts = {"bits", "group", "symmetric", "scale"};
  if (key == "weight") return !recipe.weight.empty();
  if (parts.count(key) > 0) return recipe.weight.empty();
  const auto starts = [&key](const char* section) { return key.rfind(section, 0) == 0; };
  for (const std::string transform : {"equalize", "smoothquant"}) {
    if (!starts((transform + ".").c_str())) continue;
    const std::vector<std::string> names = recipe.transform_list();
    return std::find(names.begin(), names.end(), transform) != names.end();
  }
  if (starts("rotation.")) return !recipe.rotation.empty();
  if (key == "transforms") return !recipe.transforms.empty();
  if (key == "low_rank.rank") return recipe.low_rank_rank > 0;
  if (key == "low_rank.error") return recipe.uses_low_rank();
  if (key == "mixed.schemes") return recipe.is_mixed();
  if (key == "mixed.bits") return recipe.mixed_bits > 0;
  if (key == "mixed.megabytes") return recipe.mixed_megabytes > 0;
  if (key == "mixed.milliseconds") return recipe.mixed_milliseconds > 0;
  if (starts("adaround.")) return recipe.uses_method("adaround");
  const bool streams = key == "gptq.quantized_prefix" || key == "gptq.match_float";
  if (streams && recipe.uses_method("adaround")) return true;
  const bool from_imatrix =
      recipe.uses_method("imatrix") ||
      (recipe.uses_method("autoround") && recipe.autoround.start == "imatrix");
  if (key == "gptq.quantized_prefix" &&
      (from_imatrix || recipe.uses_method("awq") || recipe.uses_method("autoround"))) {
    return true;
  }
  if (starts("autoround.")) return recipe.uses_method("autoround");
  if (starts("gptq.")) {
    const bool begins = recipe.autoround.start == "gptq";
    return recipe.uses_method("gptq") || (begins && recipe.uses_method("autoround"));
  }
  if (starts("calibration.")) return recipe.needs_calibration();
  if (starts("activations.")) {
    return recipe.static_activations || key == "activations.static";
  }
  if (key == "data.carry" || key == "data.window") return !recipe.data_carry.empty();
  if (key == "gate.max_kl") return recipe.gate.max_kl > 0;
  if (key == "gate.max_perplexity_increase")
    return recipe.gate.max_perplexity_increase > 0;
  if (key == "gate.min_accuracy") return recipe.gate.min_accuracy > 0;
  if (starts("scale_rule.mse"))
    return recipe.scale_rule.kind == ScaleRule::Kind::mse || from_imatrix;
  return true;
}

class Parser {
 public:
  Parser(std::string source, Recipe* recipe)
      : source_(std::move(source)), recipe_(recipe) {}

  Status parse(const YAML::Node& root) {
    if (!root.IsMap()) {
      return wrong(source_ + ":1", "a recipe is a map of keys; found ", type_name(root),
                   "; allowed: ", joined(keys_below(""), ", "));
    }
    return section(root, "");
  }

  Status override_one(const std::string& text) {
    const std::string where = "--set " + text;
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
      return wrong(where, "takes KEY=VALUE; found '", text,
                   "'; allowed: a key of the recipe, "
                   "'=' and a value (train.steps=60)");
    }
    const std::string key = canonical(text.substr(0, equals));
    const Setting* setting = find_setting(key);
    if (setting == nullptr) {
      std::vector<std::string> keys = setting_keys();
      keys.emplace_back("seed");
      return wrong(where, "unknown key; found '", text.substr(0, equals), "'",
                   did_you_mean(text.substr(0, equals), keys),
                   "; allowed: ", joined(keys, ", "));
    }
    const Status status = assign_setting(*setting, text.substr(equals + 1), *recipe_);
    if (!status.ok()) return prefixed(where, status);
    set_by_override_.insert(key);
    places_[key] = where;
    return ok_status();
  }

  // What the keys mean together.
  Status finish() {
    NIBBLE_RETURN_IF_ERROR(check_weight());
    const unsigned kind = kind_of(*recipe_);
    for (const auto& [key, where] : places_) {
      if (find_setting(key)->kinds & kind) continue;
      return wrong(where, key, " means nothing in a recipe of kind ", recipe_->kind,
                   "; found it; ", "allowed: leave it out, or another kind");
    }
    if (recipe_->kind == "float") {
      if (recipe_->layers.empty()) return ok_status();
      return wrong(cat(source_, ":", recipe_->layers[0].line),
                   "layers means nothing in a recipe of kind float; found ",
                   recipe_->layers.size(),
                   " rules; allowed: leave it out, or kind ptq or qat");
    }
    if (recipe_->kind == "lora" && recipe_->layers.empty()) {
      if (recipe_->lora_merge) return ok_status();
      return wrong(place_of("lora.merge"),
                   "lora.merge: false needs layers, the quantized weights that adapters "
                   "stay beside; found none; allowed: true, or rules in layers");
    }
    if (recipe_->layers.empty()) {
      return wrong(source_,
                   "layers is required: what is to be quantized; found none; allowed: a "
                   "list of {pattern, weight, ...}, the shortest being - pattern: \"*\"");
    }
    if (const auto rotation = recipe_->rotate_options(); !rotation.ok()) {
      return wrong(place_of("rotation.parts"), rotation.status().message());
    }
    // The names' sizes depend on the model's heads; whether they are names does not.
    if (const auto kv = parse_kv_scheme(recipe_->kv, 1, 64); !kv.ok()) {
      return wrong(
          place_of("kv"), "kv takes what a KV cache can be stored as; found '",
          recipe_->kv, "' (", kv.status().message(),
          "); allowed: f32, f16, bf16, int8, fp8, int4, int8-static, fp8-static, "
          "a scheme, KEYS,VALUES, KEYS,VALUES,QUERIES");
    } else if (recipe_->kind != "ptq" && is_static_kv(*kv)) {
      return wrong(place_of("kv"),
                   "kv: training quantizes each position by scales of its own; found '",
                   recipe_->kv,
                   "'; allowed: f32, f16, bf16, int8, fp8, int4, a scheme "
                   "whose blocks are positions, KEYS,VALUES, KEYS,VALUES,QUERIES");
    }
    if (recipe_->kind == "qat" && recipe_->train.steps == 0 &&
        recipe_->train.epochs == 0 && recipe_->blocks.epochs == 0) {
      return wrong(place_of("train.steps"),
                   "train.steps, train.epochs or qat.blocks.epochs above 0 is required; "
                   "found 0 everywhere; allowed: train.steps of at least 1, or epochs");
    }
    NIBBLE_RETURN_IF_ERROR(
        parse_carries(recipe_->data_carry,
                      cat("[recipe] ", place_of("data.carry"), ": data.carry"))
            .status());
    if (recipe_->images == "bytes" && !recipe_->static_activations) {
      return wrong(place_of("activations.images"),
                   "activations.images: bytes is for integer values; found "
                   "activations.static false; allowed: normalized, or static true");
    }
    if (recipe_->weight_estimator == "dorefa" &&
        (recipe_->train.dampen > 0 || recipe_->train.freeze_oscillations > 0)) {
      return wrong(place_of("qat.weights"),
                   "qat.weights: plain is required with qat.dampen or "
                   "qat.freeze_oscillations, which move weights to their codes; found "
                   "dorefa; allowed: one of them");
    }
    const int budgets = (recipe_->mixed_bits > 0) + (recipe_->mixed_megabytes > 0) +
                        (recipe_->mixed_milliseconds > 0);
    if (budgets > 1) {
      return wrong(source_, "mixed takes one budget; found ", budgets,
                   "; allowed: one of mixed.bits, mixed.megabytes, mixed.milliseconds");
    }
    if (budgets == 1 && comma_list(recipe_->mixed_schemes).size() < 2) {
      return wrong(place_of("mixed.schemes"),
                   "mixed.schemes takes at least two schemes to choose from; found '",
                   recipe_->mixed_schemes,
                   "'; allowed: int3/g128@f16,int4/g128@f16,int8n/r@f32 and so on");
    }
    for (const std::string& text : comma_list(recipe_->mixed_schemes)) {
      NIBBLE_RETURN_IF_ERROR(
          scheme("mixed.schemes", text, place_of("mixed.schemes"), ""));
    }
    NIBBLE_RETURN_IF_ERROR(check_low_rank());
    const bool groups_late = recipe_->gptq.act_order && !recipe_->gptq.static_groups &&
                             !recipe_->gptq.group_aware;
    if (recipe_->uses_method("gptq") && groups_late) {
      return wrong(place_of("gptq.static_groups"),
                   "gptq.act_order needs gptq.static_groups; found "
                   "act_order true, static_groups false; allowed: both true, act_order "
                   "false, or gptq.group_aware true");
    }
    return ok_status();
  }

 private:
  static std::string canonical(const std::string& key) {
    return key == "seed" ? "train.seed" : key;
  }

  std::string place_of(const std::string& key) const {
    const auto found = places_.find(key);
    return found == places_.end() ? source_ : found->second;
  }

  // Where factors cannot stand; which layers can have them is make_plan's to say.
  Status check_low_rank() const {
    if (!recipe_->uses_low_rank()) return ok_status();
    const std::string where = place_of("low_rank.rank");
    if (recipe_->kind != "ptq") {
      return wrong(where, "low_rank is for recipes of kind ptq; found kind ",
                   recipe_->kind, "; allowed: leave it out",
                   recipe_->kind == "lora" ? " (lora.merge: false keeps adapters)" : "");
    }
    if (recipe_->static_activations) {
      return wrong(where,
                   "low_rank stands beside layers that read floats; found "
                   "activations.static, whose layers read codes; allowed: leave it out");
    }
    if (recipe_->is_mixed()) {
      return wrong(where,
                   "low_rank: the budget of mixed precision knows no factors; found "
                   "both; allowed: one of them");
    }
    return ok_status();
  }

  // `weight` replaces bits, group, symmetric and scale: giving both at the same level is
  // a contradiction; --set decides over the file.
  Status check_weight() {
    for (const char* part : {"bits", "group", "symmetric", "scale"}) {
      if (places_.count("weight") == 0 || places_.count(part) == 0) continue;
      const bool weight_overrides = set_by_override_.count("weight") > 0;
      const bool part_overrides = set_by_override_.count(part) > 0;
      if (weight_overrides == part_overrides) {
        return wrong(places_[part], part,
                     " and weight exclude each other; found weight '", recipe_->weight,
                     "' at ", places_["weight"], "; allowed: one of them");
      }
      if (part_overrides) recipe_->weight.clear();
    }
    return ok_status();
  }

  Status section(const YAML::Node& map, const std::string& name) {
    std::set<std::string> seen;
    for (const auto& entry : map) {
      const std::string where = place(source_, entry.first.Mark());
      if (!entry.first.IsScalar()) {
        return wrong(where, "a key is a word; found ", type_name(entry.first),
                     "; allowed: ", joined(keys_below(name), ", "));
      }
      const std::string key = entry.first.Scalar();
      if (!seen.insert(key).second) {
        return wrong(where, "a key stands once; found '", key,
                     "' again; allowed: one of them");
      }
      const std::string full = canonical(name.empty() ? key : name + "." + key);
      if (name.empty() && key == "layers") {
        NIBBLE_RETURN_IF_ERROR(layers(entry.second));
        continue;
      }
      const Setting* setting = find_setting(full);
      if (setting != nullptr) {
        if (!entry.second.IsScalar()) {
          return wrong(where, full, " takes ", setting_takes(*setting), "; found ",
                       type_name(entry.second), "; allowed: ", setting_takes(*setting));
        }
        const Status status = assign_setting(*setting, entry.second.Scalar(), *recipe_);
        if (!status.ok()) return prefixed(where, status);
        places_[full] = where;
        continue;
      }
      const std::vector<std::string> known = keys_below(name);
      bool is_section = false;
      for (const std::string& candidate : known)
        is_section = is_section || candidate == key;
      if (!is_section || !name.empty()) {
        return wrong(where, "unknown key; found '", full, "'", did_you_mean(key, known),
                     "; allowed: ", joined(known, ", "));
      }
      if (!entry.second.IsMap()) {
        return wrong(where, key, " takes a map; found ", type_name(entry.second),
                     "; allowed: ", joined(keys_below(key), ", "));
      }
      NIBBLE_RETURN_IF_ERROR(section(entry.second, key));
    }
    return ok_status();
  }

  Status layers(const YAML::Node& list) {
    if (!list.IsSequence()) {
      return wrong(place(source_, list.Mark()), "layers takes a list of rules; found ",
                   type_name(list), "; allowed: - pattern: \"*\" and so on");
    }
    for (const YAML::Node& entry : list) {
      LayerRule rule;
      rule.line = entry.Mark().line + 1;
      NIBBLE_RETURN_IF_ERROR(layer_rule(entry, rule));
      recipe_->layers.push_back(std::move(rule));
    }
    return ok_status();
  }

  Status layer_rule(const YAML::Node& node, LayerRule& rule) {
    const std::vector<std::string> known(std::begin(kRuleKeys), std::end(kRuleKeys));
    const std::string start = cat(source_, ":", rule.line);
    if (!node.IsMap()) {
      return wrong(start, "a rule is a map; found ", type_name(node),
                   "; allowed: ", joined(known, ", "));
    }
    std::set<std::string> seen;
    for (const auto& entry : node) {
      const std::string where = place(source_, entry.first.Mark());
      const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : "";
      if (!seen.insert(key).second) {
        return wrong(where, "a key stands once; found '", key,
                     "' again; allowed: one of them");
      }
      if (key == "input" && entry.second.IsMap()) {
        NIBBLE_RETURN_IF_ERROR(input_pair(entry.second, where, rule));
        continue;
      }
      bool is_known = false;
      for (const std::string& candidate : known) is_known = is_known || candidate == key;
      if (!is_known) {
        return wrong(where, "unknown key of a rule; found '", key, "'",
                     did_you_mean(key, known), "; allowed: ", joined(known, ", "));
      }
      if (!entry.second.IsScalar()) {
        return wrong(where, key, " takes one value; found ", type_name(entry.second),
                     "; allowed: text");
      }
      NIBBLE_RETURN_IF_ERROR(rule_value(key, entry.second.Scalar(), where, rule));
    }
    if (rule.pattern.empty()) {
      return wrong(
          start, "a rule needs a pattern; found none; allowed: pattern: \"*\" and so on");
    }
    if (rule.weight == "float" && rule.reason.empty()) {
      return wrong(
          start,
          "a layer that stays float needs a reason; found none; allowed: reason: "
          "\"why\"");
    }
    if (rule.weight == "float" && (!rule.input.empty() || !rule.method.empty())) {
      return wrong(start, "a float layer has no method and no input scheme; found ",
                   rule.method.empty() ? "input" : "method", "; allowed: leave it out");
    }
    if (rule.weight == "float" && rule.low_rank.value_or(0) > 0) {
      return wrong(start, "a float layer has nothing to make up for; found low_rank ",
                   *rule.low_rank, "; allowed: leave it out");
    }
    return ok_status();
  }

  Status rule_value(const std::string& key, const std::string& value,
                    const std::string& where, LayerRule& rule) {
    if (key == "pattern") rule.pattern = value;
    if (key == "reason") rule.reason = value;
    if (key == "weight") {
      if (value != "float")
        NIBBLE_RETURN_IF_ERROR(scheme(key, value, where, " or float"));
      rule.weight = value;
    }
    if (key == "input") {
      if (value != "float")
        NIBBLE_RETURN_IF_ERROR(scheme(key, value, where, " or float"));
      rule.input = value;
    }
    if (key == "method") {
      Recipe ignored;
      const Status status = assign_setting(*find_setting("method"), value, ignored);
      if (!status.ok()) return prefixed(where, status);
      rule.method = value;
    }
    if (key == "low_rank") {
      Recipe asked;
      const Status status = assign_setting(*find_setting("low_rank.rank"), value, asked);
      if (!status.ok()) return prefixed(where, status);
      rule.low_rank = asked.low_rank_rank;
    }
    if (key == "optional") {
      if (value != "true" && value != "false") {
        return wrong(where, "optional takes true or false; found '", value,
                     "'; allowed: true, false");
      }
      rule.optional = value == "true";
    }
    return ok_status();
  }

  Status input_pair(const YAML::Node& map, const std::string& where, LayerRule& rule) {
    for (const auto& entry : map) {
      const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : "";
      if ((key != "signed" && key != "unsigned") || !entry.second.IsScalar()) {
        return wrong(place(source_, entry.first.Mark()), "unknown key of input; found '",
                     key, "'; allowed: signed, unsigned, each with a scheme");
      }
      const std::string value = entry.second.Scalar();
      NIBBLE_RETURN_IF_ERROR(
          scheme("input." + key, value, place(source_, entry.first.Mark()), ""));
      (key == "signed" ? rule.input : rule.input_unsigned) = value;
    }
    if (rule.input.empty() || rule.input_unsigned.empty()) {
      return wrong(where,
                   "input takes both signed and unsigned; found one; allowed: {signed: "
                   "int4/t@f32, unsigned: uint4/t@f32}");
    }
    return ok_status();
  }

  Status scheme(const std::string& key, const std::string& value,
                const std::string& where, const char* alternative) {
    const Result<QuantScheme> parsed = parse_scheme(value);
    if (parsed.ok()) return ok_status();
    return wrong(where, key, " takes a scheme", alternative, "; found '", value, "' (",
                 parsed.status().message(), "); allowed: int4/g128@f16 and so on");
  }

  std::string source_;
  Recipe* recipe_;
  std::map<std::string, std::string> places_;  // key -> where it was set
  std::set<std::string> set_by_override_;
};

}  // namespace

std::string Recipe::weight_scheme() const {
  if (!weight.empty()) return weight;
  const std::string block = group == 0 ? "/r" : cat("/g", group);
  if (symmetric) return cat("int", bits, block, "@", scale);
  return cat("uint", bits, block, "@", scale, "+z", block, "@uint", bits);
}

bool Recipe::uses_method(const std::string& name) const {
  for (const LayerRule& rule : layers) {
    if (rule.weight == "float") continue;
    if ((rule.method.empty() ? method : rule.method) == name) return true;
  }
  return false;
}

bool Recipe::uses_low_rank() const {
  return std::any_of(layers.begin(), layers.end(), [this](const LayerRule& rule) {
    return rule.weight != "float" && rule.low_rank.value_or(low_rank_rank) > 0;
  });
}

std::vector<std::string> comma_list(const std::string& text) {
  std::vector<std::string> names;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    std::string name = text.substr(begin, end - begin);
    std::erase(name, ' ');
    names.push_back(name);
    begin = end + 1;
  }
  return names;
}

std::vector<std::string> Recipe::transform_list() const { return comma_list(transforms); }

Result<RotateOptions> Recipe::rotate_options() const {
  RotateOptions options;
  options.seed = rotation_seed;
  for (const std::string& part : comma_list(rotation)) {
    bool* const on = part == "residual" ? &options.residual
                     : part == "heads"  ? &options.heads
                     : part == "down"   ? &options.down
                     : part == "cache"  ? &options.cache
                                        : nullptr;
    if (on == nullptr) {
      return error(StatusCode::invalid_argument,
                   "rotation.parts takes what of a model is rotated; found '", part,
                   "'; allowed: residual, heads, down, cache, with commas between");
    }
    *on = true;
  }
  return options;
}

bool Recipe::kv_needs_calibration() const {
  const Result<KvScheme> scheme = parse_kv_scheme(kv, 1, 64);
  return scheme.ok() && ((is_static_kv(scheme->keys) && scheme->key_scale == 0) ||
                         (is_static_kv(scheme->values) && scheme->value_scale == 0));
}

bool Recipe::has_static_input() const {
  return std::any_of(layers.begin(), layers.end(), [](const LayerRule& rule) {
    const Result<QuantScheme> scheme = parse_scheme(rule.input);
    return scheme.ok() && scheme->scales.size() == 1 &&
           scheme->scales[0].block.kind == Block::Kind::tensor;
  });
}

bool Recipe::needs_calibration() const {
  if (static_activations || has_static_input() || is_mixed() || kv_needs_calibration()) {
    return true;
  }
  if (!transform_list().empty()) return true;
  if (uses_low_rank() && low_rank_error == "outputs") return true;
  for (const std::string& name : method_names()) {
    if (method_needs_inputs(name) && uses_method(name)) return true;
  }
  return false;
}

Result<Recipe> parse_recipe(const std::string& yaml, const std::string& source,
                            const std::vector<std::string>& overrides) {
  Recipe recipe;
  recipe.source = source;
  Parser parser(source, &recipe);
  try {
    NIBBLE_RETURN_IF_ERROR(parser.parse(YAML::Load(yaml)));
  } catch (const YAML::Exception& problem) {
    return wrong(place(source, problem.mark), "YAML is required; found something else (",
                 problem.msg, "); allowed: key: value lines");
  }
  for (const std::string& text : overrides)
    NIBBLE_RETURN_IF_ERROR(parser.override_one(text));
  NIBBLE_RETURN_IF_ERROR(parser.finish());
  if (recipe.name.empty()) {
    return wrong(source,
                 "name is required; found none; allowed: what reports should call it");
  }
  return recipe;
}

std::vector<std::string> builtin_recipes() {
  std::vector<std::string> names;
  for (const std::string_view file : embedded_file_names()) {
    const size_t dot = file.rfind(".yaml");
    if (dot != std::string_view::npos) names.emplace_back(file.substr(0, dot));
  }
  return names;
}

Result<std::string> builtin_recipe_text(const std::string& name) {
  const std::string_view text = embedded_file(name + ".yaml");
  if (text.data() != nullptr) return std::string(text);
  const std::vector<std::string> names = builtin_recipes();
  return error(StatusCode::not_found, "[recipe] ", name,
               ": a built-in recipe or a file is required; "
               "found neither",
               did_you_mean(name, names), "; allowed: ", joined(names, ", "),
               ", or a .yaml file");
}

Result<Recipe> load_recipe(const std::string& name_or_file,
                           const std::vector<std::string>& overrides) {
  const std::string_view text = embedded_file(name_or_file + ".yaml");
  if (text.data() != nullptr) {
    return parse_recipe(std::string(text), "built-in " + name_or_file, overrides);
  }
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(name_or_file, ignored)) {
    return builtin_recipe_text(name_or_file).status();
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string yaml, read_text_file(name_or_file));
  return parse_recipe(yaml, name_or_file, overrides);
}

std::string print_recipe(const Recipe& recipe) {
  const unsigned kind = kind_of(recipe);
  std::string text, section;
  for (const Setting& setting : recipe_settings()) {
    const std::string key = setting.key;
    if ((setting.kinds & kind) == 0) continue;
    if (!has_effect(recipe, key)) continue;
    const size_t dot = key.find('.');
    const std::string top = dot == std::string::npos ? "" : key.substr(0, dot);
    if (!top.empty() && top != section) text += top + ":\n";
    section = top;
    if (!top.empty()) text += "  ";
    text += (top.empty() ? key : key.substr(dot + 1)) + ": " +
            setting_text(setting, recipe) + "\n";
  }
  if (recipe.layers.empty()) return text;
  text += "layers:  # the first pattern that matches decides\n";
  for (const LayerRule& rule : recipe.layers) {
    text += "  - pattern: " + yaml_text(rule.pattern) + "\n";
    if (!rule.weight.empty()) text += "    weight: " + yaml_text(rule.weight) + "\n";
    if (!rule.method.empty()) text += "    method: " + yaml_text(rule.method) + "\n";
    if (!rule.input_unsigned.empty()) {
      text += "    input: {signed: " + yaml_text(rule.input) +
              ", unsigned: " + yaml_text(rule.input_unsigned) + "}\n";
    } else if (!rule.input.empty()) {
      text += "    input: " + yaml_text(rule.input) + "\n";
    }
    if (rule.low_rank) text += cat("    low_rank: ", *rule.low_rank, "\n");
    if (!rule.reason.empty()) text += "    reason: " + yaml_text(rule.reason) + "\n";
    if (rule.optional) text += "    optional: true\n";
  }
  return text;
}

std::string recipe_keys() {
  std::string text;
  for (const Setting& setting : recipe_settings()) {
    std::string key = setting.key;
    key.resize(std::max<size_t>(key.size() + 1, 29), ' ');
    const std::string meaning = setting.meaning;
    text += key + setting_takes(setting) + (meaning.empty() ? "" : ": " + meaning) + "\n";
  }
  text +=
      "layers                       a list of rules, the first that matches decides: " +
      joined({std::begin(kRuleKeys), std::end(kRuleKeys)}, ", ") + "\n";
  return text;
}

}  // namespace nibble
