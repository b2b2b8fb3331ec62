// Recipe + Program -> Plan: patterns meet names, and what cannot work is said.
#include <set>
#include <tuple>

#include "kernels/base/json.h"
#include "kernels/program/edits/low_rank.h"
#include "kernels/program/layers.h"
#include "kernels/program/never_negative.h"
#include "recipes/recipe/nearest_name.h"
#include "recipes/recipe/recipe.h"

namespace nibble {
namespace {

std::string place_of(const Recipe& recipe, const LayerRule& rule) {
  return cat(recipe.source, ":", rule.line);
}

template <class... Parts>
Status wrong(const std::string& where, const Parts&... parts) {
  return error(StatusCode::invalid_argument, "[recipe] ", where, ": ", parts...);
}

// The first few names, and how many there are.
std::string some_names(const std::vector<Layer>& layers) {
  std::string text;
  for (size_t i = 0; i < layers.size() && i < 4; ++i)
    text += (i ? ", " : "") + layers[i].name;
  if (layers.size() > 4) text += cat(", ... (", layers.size(), " layers)");
  return text;
}

// Which layer is first and last is the program's to say, however a checkpoint names them.
bool matches(const LayerRule& rule, const Layer& layer,
             const std::vector<Layer>& layers) {
  if (rule.pattern == "$first") return layer.name == layers.front().name;
  if (rule.pattern == "$last") return layer.name == layers.back().name;
  return glob_matches(rule.pattern, layer.name);
}

Status check_patterns(const Recipe& recipe, const std::vector<Layer>& layers) {
  for (const LayerRule& rule : recipe.layers) {
    if (rule.optional) continue;
    bool any = false;
    std::vector<std::string> names;
    for (const Layer& layer : layers) {
      any = any || matches(rule, layer, layers);
      names.push_back(layer.name);
    }
    if (any) continue;
    return wrong(place_of(recipe, rule), "a pattern must match a layer; found '",
                 rule.pattern, "', which matches none", did_you_mean(rule.pattern, names),
                 "; allowed: ", some_names(layers));
  }
  return ok_status();
}

const LayerRule* rule_of(const Recipe& recipe, const Layer& layer,
                         const std::vector<Layer>& layers) {
  for (const LayerRule& rule : recipe.layers) {
    if (matches(rule, layer, layers)) return &rule;
  }
  return nullptr;
}

bool is_integer(const QuantScheme& scheme) {
  return !scheme.is_float() && element_info(scheme.code).kind == ElementKind::integer;
}

// The integer path multiplies codes: signed integers, one scale a channel or a tensor.
Status check_integer_weight(const std::string& where, const Layer& layer,
                            const QuantScheme& scheme) {
  const bool one_level = scheme.scales.size() == 1 && scheme.offset == OffsetKind::none;
  const bool channels = one_level && (scheme.scales[0].block.kind == Block::Kind::row ||
                                      scheme.scales[0].block.kind == Block::Kind::tensor);
  if (is_integer(scheme) && channels && element_info(scheme.code).lowest < 0)
    return ok_status();
  return wrong(
      where,
      "activations.static needs symmetric integer weights with a scale a channel "
      "or a tensor; found ",
      to_string(scheme), " for ", layer.name,
      "; allowed: int8/r@f32, int4/t@f32 and so on (group: 0, scale: f32)");
}

// GPTQ moves the error of one column to those after it: integer codes, and scales that a
// column does not share with other rows.
Status check_gptq(const std::string& where, const Layer& layer,
                  const QuantScheme& scheme) {
  if (!method_solves("gptq", *layer.node)) {
    return wrong(where, "method gptq solves ", solvable_by("gptq"), "; found ",
                 layer.node->op, " ", layer.name, "; allowed: method rtn for it");
  }
  const bool blocks =
      scheme.scales.size() == 1 && (scheme.scales[0].block.kind == Block::Kind::row ||
                                    scheme.scales[0].block.kind == Block::Kind::group);
  if (is_integer(scheme) && blocks) return ok_status();
  return wrong(where,
               "method gptq needs integer codes with a scale a row or a group; found ",
               to_string(scheme), " for ", layer.name,
               "; allowed: int4/g128@f16 and so on, or rtn");
}

// The input scheme of a layer of a net of floats: codes by the sign of what it reads.
Status static_input_scheme(const Recipe& recipe, const LayerRule& rule, const Layer& of,
                           const Program& program, LayerPlan& layer) {
  const Node& node = *of.node;
  if (rule.input == "float") {
    layer.input_reason = rule.reason.empty() ? "by the recipe" : rule.reason;
    return ok_status();
  }
  if (reader_layer(node) != of.name) {
    layer.input_reason =
        node.op == "lstm" ? "h is made inside the lstm" : cat(node.op, " reads no codes");
    return ok_status();
  }
  const bool is_unsigned = never_negative(program, node.inputs.at(0));
  const std::string& own =
      is_unsigned && !rule.input_unsigned.empty() ? rule.input_unsigned : rule.input;
  const std::string& text = !own.empty()  ? own
                            : is_unsigned ? recipe.unsigned_activation
                                          : recipe.signed_activation;
  ActivationScheme input;
  NIBBLE_ASSIGN_OR_RETURN(input.scheme, parse_scheme(text));
  layer.scheme.input = input;
  return ok_status();
}

// The input scheme of one layer. Static recipes: by the sign of the value it reads.
Status input_scheme(const Recipe& recipe, const LayerRule& rule, const Layer& of,
                    const Program& program, const Plan& plan, LayerPlan& layer) {
  const Node& node = *of.node;
  if (recipe.static_activations && plan.activations.empty())
    return static_input_scheme(recipe, rule, of, program, layer);
  if (rule.input.empty()) return ok_status();
  const std::string where = place_of(recipe, rule);
  if (rule.input == "float") {
    if (!recipe.static_activations) return ok_status();
    return wrong(where,
                 "on the integer path every layer reads codes; found input float "
                 "for ",
                 of.name, "; allowed: leave it out");
  }
  if (node.op == "moe" || node.op == "lstm") {
    return wrong(where, node.op == "moe" ? "experts read" : "an lstm reads",
                 " floats; found input ", rule.input, " for ",
                 node.op == "moe" ? "those of " : "", node.name, "; allowed: leave it out");
  }
  if (node.op == "embedding") {
    return wrong(where, "input is a scheme of activations; found it on ", node.name,
                 ", an embedding, which reads ids; allowed: leave it out");
  }
  ActivationScheme input;
  std::string text = rule.input;
  if (recipe.static_activations) {
    const auto value = plan.activations.find(node.inputs.at(0));
    const bool is_unsigned = value != plan.activations.end() &&
                             element_info(value->second.scheme.code).lowest >= 0;
    if (is_unsigned && !rule.input_unsigned.empty()) text = rule.input_unsigned;
  } else {
    input.dynamic = true;
  }
  NIBBLE_ASSIGN_OR_RETURN(input.scheme, parse_scheme(text));
  // One scale for all tokens is calibrated.
  if (input.scheme.scales.size() == 1 &&
      input.scheme.scales[0].block.kind == Block::Kind::tensor) {
    input.dynamic = false;
  }
  const bool by_token = input.scheme.scales.size() == 1 &&
                        (input.scheme.scales[0].block.kind == Block::Kind::row ||
                         input.scheme.scales[0].block.kind == Block::Kind::group);
  if (input.dynamic && !(is_integer(input.scheme) && by_token &&
                         input.scheme.offset == OffsetKind::none)) {
    return wrong(where,
                 "a dynamic input has symmetric integer codes with a scale a token or a "
                 "group of its columns; found ",
                 text, " for ", node.name, "; allowed: int8n/r@f32, int8n/g128@f32 and so on");
  }
  layer.scheme.input = input;
  return ok_status();
}

// Of the factors beside a quantized layer. The ends of a model have none.
Result<int64_t> rank_of(const Recipe& recipe, const LayerRule& rule, const Layer& of) {
  const int64_t asked = rule.low_rank.value_or(recipe.low_rank_rank);
  if (asked == 0 || takes_low_rank(*of.node)) return asked;
  const bool inside = of.node->block >= 0 && of.node->block != kLastBlock;
  if (!rule.low_rank && !inside) return 0;
  return wrong(place_of(recipe, rule),
               "low_rank stands beside linear layers of blocks; found ", of.node->op, " ",
               of.name, "; allowed: low_rank: 0 in a rule for it");
}

Result<LayerPlan> plan_layer(const Recipe& recipe, const LayerRule& rule, const Layer& of,
                             const Program& program, const Plan& plan) {
  const std::string where = place_of(recipe, rule);
  LayerPlan layer;
  layer.node = of.name;
  layer.tensor = of.tensor;
  layer.rule = recipe.scale_rule;
  if (rule.weight == "float") {
    layer.method = "float";
    layer.reason = rule.reason;
    return layer;
  }
  const std::string text = rule.weight.empty() ? recipe.weight_scheme() : rule.weight;
  const Result<QuantScheme> scheme = parse_scheme(text);
  if (!scheme.ok()) return wrong(where, scheme.status().message());
  layer.scheme.weight = *scheme;
  if (layer.scheme.weight.is_float()) {
    return wrong(where, "a quantized layer has a scale; found scheme ", text, " for ",
                 of.name,
                 "; allowed: a scheme with a scale, or weight: float with a reason");
  }
  layer.method = rule.method.empty() ? recipe.method : rule.method;
  if (layer.method == "gptq") {
    NIBBLE_RETURN_IF_ERROR(check_gptq(where, of, layer.scheme.weight));
  }
  if (recipe.static_activations) {
    NIBBLE_RETURN_IF_ERROR(check_integer_weight(where, of, layer.scheme.weight));
  }
  NIBBLE_RETURN_IF_ERROR(input_scheme(recipe, rule, of, program, plan, layer));
  NIBBLE_ASSIGN_OR_RETURN(layer.rank, rank_of(recipe, rule, of));
  return layer;
}

// The keys `embedding` and `lm_head` stand above the rules of these two layers.
class Ends {
 public:
  static Result<Ends> of(const Recipe& recipe, const Program& program) {
    Ends ends(recipe);
    for (const Layer& layer : layers_of(program)) {
      if (!program.is_language_model()) break;
      if (layer.node->op == "embedding") ends.embedding_ = layer.tensor;
      const bool last = layer.node->outputs[0] == program.outputs[0].name;
      if (layer.node->op == "linear" && last) ends.lm_head_ = layer.tensor;
    }
    for (const auto& [key, text, tensor] :
         {std::tuple{"embedding", &recipe.embedding, &ends.embedding_},
          std::tuple{"lm_head", &recipe.lm_head, &ends.lm_head_}}) {
      if (text->empty()) continue;
      if (tensor->empty()) {
        return wrong(recipe.source, key, " decides about a language model's; found ",
                     program.architecture, ", which has none; allowed: leave it out");
      }
      if (*text == "float") continue;
      const Result<QuantScheme> scheme = parse_scheme(*text);
      if (!scheme.ok() || scheme->is_float()) {
        return wrong(recipe.source, key, " takes a scheme with a scale, or float; found ",
                     *text, "; allowed: int8n/r@f32, int4/g128@f16 and so on");
      }
    }
    const bool both = !recipe.embedding.empty() && !recipe.lm_head.empty();
    if (ends.tied() && both && recipe.embedding != recipe.lm_head) {
      return wrong(recipe.source, "embedding and lm_head are one tensor, ",
                   ends.embedding_, "; found ", recipe.embedding, " for one and ",
                   recipe.lm_head, " for the other; allowed: one of the two keys");
    }
    return ends;
  }

  // The rule of a layer with what the keys say about it.
  LayerRule rule(LayerRule rule, const Layer& layer) const {
    const bool first = layer.tensor == embedding_, last = layer.tensor == lm_head_;
    std::string text = first ? recipe_.embedding : last ? recipe_.lm_head : "";
    if (text.empty() && first && tied()) text = recipe_.lm_head;
    if (text.empty()) return rule;
    rule.weight = text;
    rule.reason = text == "float" ? "kept float by the recipe's key" : "";
    if (first) {  // gathered: no method can look at its inputs
      rule.method = "rtn";
      rule.input = "";
    }
    return rule;
  }

 private:
  explicit Ends(const Recipe& recipe) : recipe_(recipe) {}
  bool tied() const { return !embedding_.empty() && embedding_ == lm_head_; }

  const Recipe& recipe_;
  std::string embedding_, lm_head_;  // tensors; "" where there is none
};

Status plan_activations(const Recipe& recipe, const Program& program, Plan& plan) {
  if (!recipe.static_activations) return ok_status();
  if (program.is_language_model()) {
    return error(StatusCode::unsupported, "[recipe] ", recipe.source,
                 ": activations.static is the integer path of convolutional nets; found ",
                 program.architecture,
                 ", a language model; allowed: a weight-only recipe (w8a16, "
                 "w4a16-rtn, w4a16-gptq)");
  }
  NIBBLE_ASSIGN_OR_RETURN(const QuantScheme is_signed,
                          parse_scheme(recipe.signed_activation));
  NIBBLE_ASSIGN_OR_RETURN(const QuantScheme is_unsigned,
                          parse_scheme(recipe.unsigned_activation));
  if (element_info(is_signed.code).lowest >= 0 ||
      element_info(is_unsigned.code).lowest < 0) {
    return wrong(recipe.source,
                 "activations.signed takes signed codes and activations.unsigned "
                 "unsigned ones; found ",
                 recipe.signed_activation, " and ", recipe.unsigned_activation,
                 "; allowed: int8/t@f32 and uint8/t@f32");
  }
  // A net that the integer path cannot be: values stay floats, layers read codes.
  const auto values = integer_activations(program, is_signed, is_unsigned);
  const bool partly =
      !has_integer_ends(program) || values.status().code() == StatusCode::unsupported;
  const char* correction = plan.bias_correction > 0           ? "bias_correction"
                           : plan.batch_norm_reestimation > 0 ? "batch_norm_reestimation"
                                                              : nullptr;
  if (partly && (plan.byte_images || correction != nullptr)) {
    return wrong(
        recipe.source, plan.byte_images ? "activations.images: bytes" : correction,
        " needs a net whose values are all integers; found ", program.architecture, ", ",
        has_integer_ends(program) ? values.status().message()
                                  : "with other ends than an image and a value",
        "; allowed: ",
        plan.byte_images ? "activations.images=normalized" : cat(correction, "=0"));
  }
  if (partly) return ok_status();
  NIBBLE_ASSIGN_OR_RETURN(plan.activations, values);
  if (plan.byte_images)
    plan.activations.at(program.inputs.at(0).name).scheme = is_unsigned;
  return ok_status();
}

}  // namespace

Result<Artifact> prepare_for_recipe(const Artifact& model, const Recipe& recipe) {
  NIBBLE_ASSIGN_OR_RETURN(
      Artifact ready,
      prepare_for_plan(model, recipe.static_activations, recipe.images == "bytes"));
  NIBBLE_ASSIGN_OR_RETURN(const RotateOptions options, recipe.rotate_options());
  if (!options.any()) return ready;
  NIBBLE_ASSIGN_OR_RETURN(RotatedModel rotated,
                          rotate(ready.program, ready.tensors, options));
  ready.program = std::move(rotated.program);
  ready.tensors = std::move(rotated.tensors);
  if (rotated.untied) {
    nlohmann::ordered_json config = parse_ordered_json(ready.config_json);
    if (config.is_object() && config.contains("tie_word_embeddings")) {
      config["tie_word_embeddings"] = false;
      ready.config_json = config.dump(2);
    }
  }
  return ready;
}

Result<Plan> make_plan(const Recipe& recipe, const Program& program) {
  if (recipe.kind == "float" || recipe.layers.empty()) {
    return wrong(recipe.source, "a plan needs a recipe that quantizes; found kind ",
                 recipe.kind, recipe.kind == "float" ? "" : " without layers",
                 "; allowed: kind ptq or qat");
  }
  Plan plan;
  plan.observer = recipe.observer;
  plan.byte_images = recipe.images == "bytes";
  plan.bias_correction = recipe.bias_correction;
  plan.batch_norm_reestimation = recipe.batch_norm_reestimation;
  plan.gptq = recipe.gptq;
  plan.autoround = recipe.autoround;
  plan.adaround = recipe.adaround;
  if (recipe.is_mixed()) {
    for (const std::string& text : comma_list(recipe.mixed_schemes)) {
      NIBBLE_ASSIGN_OR_RETURN(const QuantScheme scheme, parse_scheme(text));
      plan.mixed.schemes.push_back(scheme);
    }
  }
  plan.low_rank_on_outputs = recipe.low_rank_error == "outputs";
  plan.transforms = recipe.transform_list();
  plan.smoothquant_alpha = recipe.smoothquant_alpha;
  plan.equalize_alpha = recipe.equalize_alpha;
  plan.calibration_sequences = recipe.calibration_sequences;
  plan.calibration_length = recipe.calibration_length;
  plan.minimum_tokens_per_expert = recipe.minimum_tokens_per_expert;
  NIBBLE_RETURN_IF_ERROR(plan_activations(recipe, program, plan));

  const std::vector<Layer> layers = layers_of(program);
  NIBBLE_RETURN_IF_ERROR(check_patterns(recipe, layers));
  NIBBLE_ASSIGN_OR_RETURN(const Ends ends, Ends::of(recipe, program));
  bool quantizes = false;
  for (const Layer& each : layers) {
    const LayerRule* rule = rule_of(recipe, each, layers);
    if (rule == nullptr) {
      return wrong(recipe.source, "every layer is decided by a pattern; found ",
                   each.name,
                   ", which none matches; allowed: a last rule - pattern: \"*\"");
    }
    NIBBLE_ASSIGN_OR_RETURN(
        LayerPlan layer, plan_layer(recipe, ends.rule(*rule, each), each, program, plan));
    // A tied weight is one tensor with one scheme, whoever reads it.
    const LayerPlan* tied = plan.find(layer.tensor);
    if (tied == nullptr) {
      quantizes = quantizes || layer.method != "float";
      plan.layers.push_back(std::move(layer));
      continue;
    }
    // Of a head tied to an embedding the embedding's rule says how codes are found: its ids
    // are no inputs that a method could look at.
    const bool gathered = program.find(tied->node)->op == "embedding" &&
                          tied->method != "float" && layer.method != "float";
    if ((tied->method != layer.method && !gathered) ||
        !(tied->scheme.weight == layer.scheme.weight)) {
      return wrong(place_of(recipe, *rule), tied->node, " and ", each.name, " share ",
                   layer.tensor, "; found ", tied->method, " for one and ", layer.method,
                   " for the other; allowed: the same scheme and method for both");
    }
  }
  if (recipe.uses_low_rank() && !plan.has_low_rank()) {
    return wrong(
        recipe.source,
        "low_rank stands beside quantized linear layers of blocks; found none in ",
        program.architecture, "; allowed: leave it out");
  }
  if (!quantizes) {
    return wrong(
        recipe.source, "a recipe of kind ", recipe.kind,
        " quantizes at least one layer; "
        "found every layer float; allowed: a rule with a scheme, or recipe float");
  }
  NIBBLE_RETURN_IF_ERROR(check_plan(plan, program));
  return plan;
}

}  // namespace nibble
