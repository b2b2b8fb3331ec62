#include "recipes/recipe/settings.h"

#include <charconv>
#include <cmath>

#include "kernels/runtime/compute.h"
#include "recipes/recipe/nearest_name.h"

namespace nibble {
namespace {

constexpr double kMany = 1e12;  // "no upper limit" for counts

#define NIBBLE_TARGET(member) [](Recipe& r) -> SettingTarget { return &r.member; }

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// What a setting with choices may be; "method" stands for the methods that there are, a
// program's own included.
std::vector<std::string> allowed_texts(const Setting& setting) {
  if (std::string_view(setting.choices) != "method") return split(setting.choices, '|');
  std::vector<std::string> names = method_names();
  std::erase(names, "float");  // a layer's, not a recipe's
  return names;
}

std::string number_text(double value) {
  char buffer[64];
  const auto [end, problem] = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return problem == std::errc() ? std::string(buffer, end) : cat(value);
}

// The whole text as a number; false when something is left over.
template <class T>
bool parse_number(const std::string& text, T* value) {
  const char* end = text.data() + text.size();
  const auto [stop, problem] = std::from_chars(text.data(), end, *value);
  return !text.empty() && problem == std::errc() && stop == end;
}

struct Assigner {
  const Setting& setting;
  const std::string& text;

  Status wrong() const {
    return error(StatusCode::invalid_argument, setting.key, " takes ",
                 setting_takes(setting), "; found '", text, "'");
  }
  template <class T>
  Status number(T* target) const {
    T value = 0;
    if (!parse_number(text, &value)) return wrong();
    const double real = static_cast<double>(value);
    if (!std::isfinite(real) || real < setting.lowest || real > setting.highest)
      return wrong();
    *target = value;
    return ok_status();
  }
  Status operator()(int64_t* target) const { return number(target); }
  Status operator()(int* target) const { return number(target); }
  Status operator()(uint64_t* target) const { return number(target); }
  Status operator()(double* target) const { return number(target); }
  Status operator()(bool* target) const {
    if (text != "true" && text != "false") return wrong();
    *target = text == "true";
    return ok_status();
  }
  Status operator()(ScaleRule::Kind* target) const {
    if (text != "absmax" && text != "mse") return wrong();
    *target = text == "mse" ? ScaleRule::Kind::mse : ScaleRule::Kind::absmax;
    return ok_status();
  }
  Status operator()(std::string* target) const {
    const std::string choices = setting.choices;
    if (choices == "scheme") {
      const Result<QuantScheme> scheme = parse_scheme(text);
      if (!scheme.ok()) {
        return error(StatusCode::invalid_argument, setting.key,
                     " takes a scheme; found '", text, "' (", scheme.status().message(),
                     ")");
      }
    } else if (!choices.empty()) {
      const std::vector<std::string> allowed = allowed_texts(setting);
      bool known = false;
      for (const std::string& choice : allowed) known = known || choice == text;
      if (!known) {
        return error(StatusCode::invalid_argument, setting.key, " takes ",
                     setting_takes(setting), "; found '", text, "'",
                     did_you_mean(text, allowed));
      }
    }
    *target = text;
    return ok_status();
  }
};

struct Printer {
  std::string operator()(const std::string* value) const { return yaml_text(*value); }
  std::string operator()(const int64_t* value) const { return cat(*value); }
  std::string operator()(const int* value) const { return cat(*value); }
  std::string operator()(const uint64_t* value) const { return cat(*value); }
  std::string operator()(const double* value) const { return number_text(*value); }
  std::string operator()(const bool* value) const { return *value ? "true" : "false"; }
  std::string operator()(const ScaleRule::Kind* value) const {
    return *value == ScaleRule::Kind::mse ? "mse" : "absmax";
  }
};

std::vector<Setting> make_settings() {
  return {
      {"name", "", 0, 0, kAll, "what reports call it", NIBBLE_TARGET(name)},
      {"description", "", 0, 0, kAll, "one sentence", NIBBLE_TARGET(description)},
      {"kind", "ptq|qat|float|lora", 0, 0, kAll,
       "quantize only; quantize and train; train in float; train adapters",
       NIBBLE_TARGET(kind)},
      {"weight", "scheme", 0, 0, kQuantizing,
       "weight scheme of layers whose rule names none; replaces the next four",
       NIBBLE_TARGET(weight)},
      {"bits", "", 2, 8, kQuantizing, "bits of a weight code", NIBBLE_TARGET(bits)},
      {"group", "", 0, 65536, kQuantizing, "weights that share a scale; 0: the whole row",
       NIBBLE_TARGET(group)},
      {"symmetric", "", 0, 0, kQuantizing, "false: a zero point a group",
       NIBBLE_TARGET(symmetric)},
      {"scale", "f32|f16|bf16", 0, 0, kQuantizing, "element of the scales",
       NIBBLE_TARGET(scale)},
      {"embedding", "", 0, 0, kQuantizing,
       "scheme of the embedding (and of an lm_head tied to it), or float; instead of its "
       "rule",
       NIBBLE_TARGET(embedding)},
      {"lm_head", "", 0, 0, kQuantizing, "the same of lm_head", NIBBLE_TARGET(lm_head)},
      {"method", "method", 0, 0, kQuantizing,
       "how codes are found (qat: where it starts)", NIBBLE_TARGET(method)},
      {"scale_rule.kind", "absmax|mse", 0, 0, kQuantizing, "how scales are found",
       NIBBLE_TARGET(scale_rule.kind)},
      {"scale_rule.mse_lowest", "", 0.01, 1, kQuantizing, "smallest shrink factor tried",
       NIBBLE_TARGET(scale_rule.mse_lowest)},
      {"scale_rule.mse_steps", "", 1, 10000, kQuantizing, "shrink factors tried",
       NIBBLE_TARGET(scale_rule.mse_steps)},
      {"scale_rule.mse_norm", "", 0.5, 8, kQuantizing, "exponent of the error",
       NIBBLE_TARGET(scale_rule.mse_norm)},
      {"scale_rule.full_range", "", 0, 0, kPtq,
       "int4, int3 and int2 without zero points: scales of both signs, so that the "
       "longer "
       "side of the codes serves the longer side of each group",
       NIBBLE_TARGET(scale_rule.full_range)},
      {"transforms", "", 0, 0, kQuantizing,
       "edits of the float model before its layers are solved, in order, commas between",
       NIBBLE_TARGET(transforms)},
      {"smoothquant.alpha", "", 0, 0.99, kQuantizing,
       "share of the activations' range in the factors; 0: searched",
       NIBBLE_TARGET(smoothquant_alpha)},
      {"equalize.alpha", "", 0.01, 1, kQuantizing,
       "share of the activations' range in the factors of transform equalize",
       NIBBLE_TARGET(equalize_alpha)},
      {"rotation.parts", "", 0, 0, kQuantizing,
       "what of the float model is rotated first: residual, heads (both cost nothing), "
       "down, cache (nodes of their own), commas between",
       NIBBLE_TARGET(rotation)},
      {"rotation.seed", "", 1, 1.8e19, kQuantizing, "of the residual stream's signs",
       NIBBLE_TARGET(rotation_seed)},
      {"gptq.damping", "", 0, 10, kQuantizing, "fraction of the mean Hessian diagonal",
       NIBBLE_TARGET(gptq.damping)},
      {"gptq.damping_attempts", "", 0, 20, kQuantizing,
       "tenfold increases before it fails", NIBBLE_TARGET(gptq.damping_attempts)},
      {"gptq.act_order", "", 0, 0, kQuantizing, "columns by falling Hessian diagonal",
       NIBBLE_TARGET(gptq.act_order)},
      {"gptq.group_aware", "", 0, 0, kQuantizing,
       "act_order: whole groups by their mean, columns inside them",
       NIBBLE_TARGET(gptq.group_aware)},
      {"gptq.static_groups", "", 0, 0, kQuantizing, "group scales before the solve",
       NIBBLE_TARGET(gptq.static_groups)},
      {"gptq.quantized_prefix", "", 0, 0, kQuantizing,
       "layers see already quantized layers", NIBBLE_TARGET(gptq.quantized_prefix)},
      {"gptq.match_float", "", 0, 0, kQuantizing,
       "aim at the float model's outputs all the same", NIBBLE_TARGET(gptq.match_float)},
      {"gptq.refine_sweeps", "", 0, 1000, kQuantizing,
       "descent over single codes after the solve", NIBBLE_TARGET(gptq.refine_sweeps)},
      {"gptq.refine_scales", "", 0, 100, kQuantizing,
       "rounds of refined scales, each with such a descent after it",
       NIBBLE_TARGET(gptq.refine_scales)},
      {"autoround.iterations", "", 1, 100000, kQuantizing,
       "steps of signed descent a block", NIBBLE_TARGET(autoround.iterations)},
      {"autoround.batch", "", 1, 1e6, kQuantizing, "sequences (or 16 images) a step",
       NIBBLE_TARGET(autoround.batch)},
      {"autoround.learning_rate", "", 0, 1, kQuantizing, "in codes; 0: 1 / iterations",
       NIBBLE_TARGET(autoround.learning_rate)},
      {"autoround.start", "gptq|imatrix|rtn", 0, 0, kQuantizing,
       "the method whose codes it starts from", NIBBLE_TARGET(autoround.start)},
      {"adaround.iterations", "", 1, 1000000, kQuantizing, "steps of Adam a layer",
       NIBBLE_TARGET(adaround.iterations)},
      {"adaround.learning_rate", "", 1e-6, 10, kQuantizing, "of the rounding's logits",
       NIBBLE_TARGET(adaround.learning_rate)},
      {"adaround.regularization", "", 0, 1e6, kQuantizing,
       "pull of each rounding to one side, in the price of moving a weight by a code",
       NIBBLE_TARGET(adaround.regularization)},
      {"adaround.rows", "", 1, 1e8, kQuantizing,
       "inputs (patches, tokens) that are kept of a layer before a ReLU",
       NIBBLE_TARGET(adaround.rows)},
      {"adaround.batch", "", 1, 1e8, kQuantizing, "of them, in a step",
       NIBBLE_TARGET(adaround.batch)},
      {"low_rank.rank", "", 0, 65536, kPtq,
       "of two thin matrices beside each quantized linear layer of a block, which give "
       "back what quantization took; 0: none (a rule's low_rank decides for its layers)",
       NIBBLE_TARGET(low_rank_rank)},
      {"low_rank.error", "outputs|weights", 0, 0, kPtq,
       "what they minimise: the error of the layer's outputs on the calibration data, or "
       "that of its weight, without data",
       NIBBLE_TARGET(low_rank_error)},
      {"mixed.schemes", "", 0, 0, kQuantizing,
       "what each quantized layer may become, commas between",
       NIBBLE_TARGET(mixed_schemes)},
      {"mixed.bits", "", 0, 32, kQuantizing,
       "budget: bits a quantized weight, scales counted; 0: none",
       NIBBLE_TARGET(mixed_bits)},
      {"mixed.megabytes", "", 0, kMany, kQuantizing,
       "budget: the artifact's weights, float ones too; 0: none",
       NIBBLE_TARGET(mixed_megabytes)},
      {"mixed.milliseconds", "", 0, kMany, kQuantizing,
       "budget: the layers' time for one token on this machine; 0: none",
       NIBBLE_TARGET(mixed_milliseconds)},
      {"activations.static", "", 0, 0, kQuantizing, "integer path of a convolutional net",
       NIBBLE_TARGET(static_activations)},
      {"activations.signed", "scheme", 0, 0, kQuantizing, "values that may be negative",
       NIBBLE_TARGET(signed_activation)},
      {"activations.unsigned", "scheme", 0, 0, kQuantizing, "values after a ReLU",
       NIBBLE_TARGET(unsigned_activation)},
      {"activations.observer", "minmax|mse|percentile|kl", 0, 0, kQuantizing,
       "how their scales are found", NIBBLE_TARGET(observer)},
      {"activations.images", "normalized|bytes", 0, 0, kPtq,
       "bytes: the first layer, which must not pad, takes the normalization of images "
       "and "
       "reads their bytes / 255, which 8 bits hold exactly",
       NIBBLE_TARGET(images)},
      {"bias_correction", "", 0, kMany, kQuantizing,
       "images whose mean error is taken out of the biases (static activations); 0: none",
       NIBBLE_TARGET(bias_correction)},
      {"batch_norm_reestimation", "", 0, kMany, kQuantizing,
       "images on which each channel of a convolution gets the float net's mean and "
       "variance, by its row's scale and bias (static activations); 0: none",
       NIBBLE_TARGET(batch_norm_reestimation)},
      {"calibration.sequences", "", 1, kMany, kQuantizing,
       "sequences (or images) to calibrate on", NIBBLE_TARGET(calibration_sequences)},
      {"calibration.length", "", 2, kMany, kQuantizing, "tokens of each",
       NIBBLE_TARGET(calibration_length)},
      {"calibration.minimum_tokens_per_expert", "", 0, kMany, kQuantizing,
       "fewer are an error; 0: such experts (under 32) are rounded to nearest",
       NIBBLE_TARGET(minimum_tokens_per_expert)},
      {"kv", "", 0, 0, kQuantizing,
       "KV caches: f32, f16, bf16, int8, fp8, int4, int8-static, fp8-static, a scheme, "
       "KEYS,VALUES, or KEYS,VALUES,QUERIES (what attention's queries are rounded to)",
       NIBBLE_TARGET(kv)},
      {"qat.learn_weight_scale", "", 0, 0, kQat, "LSQ on weights",
       NIBBLE_TARGET(learn_weight_scale)},
      {"qat.learn_activation_scale", "", 0, 0, kQat, "static activations learn theirs",
       NIBBLE_TARGET(learn_activation_scale)},
      {"qat.activations", "lsq|pact", 0, 0, kQat,
       "how: from rounding errors too, or from what is clipped alone",
       NIBBLE_TARGET(activation_estimator)},
      {"qat.weights", "plain|dorefa", 0, 0, kQat,
       "quantized as they are, or squashed by DoReFa's tanh first",
       NIBBLE_TARGET(weight_estimator)},
      {"qat.learn_zero_point", "", 0, 0, kQat,
       "LSQ+ on weights with zero points or minima", NIBBLE_TARGET(learn_zero_point)},
      {"qat.trained", "all|layers|scales", 0, 0, kQat,
       "all parameters; quantized layers; their scales and zero points alone",
       NIBBLE_TARGET(trained)},
      {"qat.dampen", "", 0, 1e6, kQat, "pull of weights towards their codes",
       NIBBLE_TARGET(train.dampen)},
      {"qat.freeze_oscillations", "", 0, 1, kQat,
       "weights that jump more often than this a step are frozen; 0: none",
       NIBBLE_TARGET(train.freeze_oscillations)},
      {"qat.blocks.epochs", "", 0, 1e6, kQat,
       "passes in which each block learns alone, before train.*; 0: none",
       NIBBLE_TARGET(blocks.epochs)},
      {"qat.blocks.sequences", "", 1, kMany, kQat, "sequences or images for it",
       NIBBLE_TARGET(blocks_sequences)},
      {"qat.blocks.learning_rate", "", 0, 100, kQat, "of weights and norms",
       NIBBLE_TARGET(blocks.learning_rate)},
      {"qat.blocks.scale_learning_rate", "", 0, 100, kQat,
       "of scales and zero points; 0: learning_rate",
       NIBBLE_TARGET(blocks.scale_learning_rate)},
      {"qat.batch_norm.epochs", "", 0, 1e6, kQat,
       "convolutional nets: passes with batch norms in place, before they are folded and "
       "train.* begins; 0: none",
       NIBBLE_TARGET(norms.epochs)},
      {"qat.batch_norm.learning_rate", "", 0, 100, kQat, "of these passes",
       NIBBLE_TARGET(norms.learning_rate)},
      {"qat.batch_norm.scale_learning_rate", "", 0, 100, kQat,
       "of scales in them; 0: learning_rate", NIBBLE_TARGET(norms.scale_learning_rate)},
      {"lora.rank", "", 1, 65536, kLora, "of the adapters", NIBBLE_TARGET(lora_rank)},
      {"lora.pattern", "", 0, 0, kLora, "the linear layers that get one",
       NIBBLE_TARGET(lora_pattern)},
      {"lora.merge", "", 0, 0, kLora,
       "true: a float checkpoint; false: adapters beside the quantized weights",
       NIBBLE_TARGET(lora_merge)},
      {"distill.weight", "", 0, 1, kTraining,
       "share of the teacher's logits in the loss, the rest is the data's",
       NIBBLE_TARGET(train.distill_weight)},
      {"distill.temperature", "", 0.01, 100, kTraining, "of both softmaxes",
       NIBBLE_TARGET(train.distill_temperature)},
      {"distill.hidden", "", 0, 1e6, kTraining, "weight of the blocks' outputs",
       NIBBLE_TARGET(train.distill_hidden)},
      {"distill.teacher", "", 0, 0, kTraining,
       "a model's path; empty: the float model itself", NIBBLE_TARGET(teacher)},
      {"train.optimizer", "adamw|sgd", 0, 0, kTraining, "",
       NIBBLE_TARGET(train.optimizer)},
      {"train.learning_rate", "", 0, 100, kTraining, "at the end of the warm-up",
       NIBBLE_TARGET(train.learning_rate)},
      {"train.scale_learning_rate", "", 0, 100, kTraining,
       "of learned scales; 0: learning_rate", NIBBLE_TARGET(train.scale_learning_rate)},
      {"train.weight_decay", "", 0, 10, kTraining, "of matrices",
       NIBBLE_TARGET(train.weight_decay)},
      {"train.momentum", "", 0, 1, kTraining, "sgd", NIBBLE_TARGET(train.momentum)},
      {"train.beta1", "", 0, 1, kTraining, "adamw", NIBBLE_TARGET(train.beta1)},
      {"train.beta2", "", 0, 1, kTraining, "adamw", NIBBLE_TARGET(train.beta2)},
      {"train.steps", "", 0, kMany, kTraining, "0: epochs decides",
       NIBBLE_TARGET(train.steps)},
      {"train.epochs", "", 0, 1e6, kTraining,
       "passes over the data; 0 with steps 0: after qat.blocks, nothing more",
       NIBBLE_TARGET(train.epochs)},
      {"train.batch", "", 1, 1e6, kTraining, "sequences or images of a forward pass",
       NIBBLE_TARGET(train.batch)},
      {"train.accumulate", "", 1, 1e6, kTraining, "forward passes a step",
       NIBBLE_TARGET(train.accumulate)},
      {"train.precision", "f32|bf16", 0, 0, kTraining,
       "operands of linear layers and convolutions; sums stay f32",
       NIBBLE_TARGET(train.precision)},
      {"train.recompute", "", 0, 0, kTraining,
       "blocks run again in the backward pass: less memory, more time, the same bytes",
       NIBBLE_TARGET(train.recompute)},
      {"train.average", "", 0, 0.99999, kTraining,
       "decay of the weights' moving average, which is what ships; 0: none",
       NIBBLE_TARGET(train.average)},
      {"train.evaluate_every", "", 0, kMany, kTraining,
       "steps between looks at the artifact's own figure; the best one ships; 0: none",
       NIBBLE_TARGET(train.evaluate_every)},
      {"train.patience", "", 0, kMany, kTraining,
       "looks without a gain before it stops; 0: never", NIBBLE_TARGET(train.patience)},
      {"train.warmup_steps", "", 0, kMany, kTraining, "",
       NIBBLE_TARGET(train.warmup_steps)},
      {"train.final_learning_rate", "", 0, 1, kTraining,
       "fraction left at the end of the cosine",
       NIBBLE_TARGET(train.final_learning_rate)},
      {"train.clip_norm", "", 0, 1e6, kTraining, "of the gradient; 0: none",
       NIBBLE_TARGET(train.clip_norm)},
      {"train.label_smoothing", "", 0, 0.9, kTraining, "images",
       NIBBLE_TARGET(train.label_smoothing)},
      {"train.seed", "", 0, 1.8e19, kTraining,
       "of initial weights and data order; also: seed", NIBBLE_TARGET(train.seed)},
      {"train.checkpoint_every", "", 0, kMany, kTraining, "steps; 0: only at the end",
       NIBBLE_TARGET(train.checkpoint_every)},
      {"train.log_every", "", 1, kMany, kTraining, "steps",
       NIBBLE_TARGET(train.log_every)},
      {"train.sequence_length", "", 0, kMany, kTraining,
       "tokens; 0: the context, at most 512", NIBBLE_TARGET(sequence_length)},
      {"data.per_line", "", 0, 0, kAll, "each line of the text alone",
       NIBBLE_TARGET(data_per_line)},
      {"data.min_chars", "", 0, kMany, kAll, "shorter lines are left out",
       NIBBLE_TARGET(data_min_chars)},
      {"data.append_eos", "", 0, 0, kAll, "per_line: a whole line ends with EOS",
       NIBBLE_TARGET(data_append_eos)},
      {"data.carry", "", 0, 0, kAll,
       "nets over values: OUTPUT=INPUT, commas between: what the output gives in one "
       "step "
       "the input reads in the next; tensors are then [steps, ..]",
       NIBBLE_TARGET(data_carry)},
      {"data.window", "", 1, 4096, kTraining,
       "steps of such a stream that training goes through at once, the state carried",
       NIBBLE_TARGET(data_window)},
      {"data.images", "", 0, kMany, kTraining,
       "at most: the first of the folder, to train on; 0: all",
       NIBBLE_TARGET(data_images)},
      {"data.augment", "", 0, 0, kTraining,
       "images: shifted by up to 4 pixels; colour images mirrored",
       NIBBLE_TARGET(data_augment)},
      {"data.mixup", "", 0, 100, kTraining,
       "images: pairs of a batch mixed by shares of Beta(alpha, alpha), which the "
       "teacher "
       "alone "
       "judges (distill.weight 1); 0: none",
       NIBBLE_TARGET(data_mixup)},
      {"gate.max_kl", "", 0, 1e6, kQuantizing,
       "rejected unless the KL's interval ends below; 0: no gate",
       NIBBLE_TARGET(gate.max_kl)},
      {"gate.max_perplexity_increase", "", 0, 1e6, kQuantizing,
       "percent over the float model's, likewise; 0: no gate",
       NIBBLE_TARGET(gate.max_perplexity_increase)},
      {"gate.min_accuracy", "", 0, 100, kQuantizing,
       "percent, rejected unless its interval begins above; 0: no gate",
       NIBBLE_TARGET(gate.min_accuracy)},
      {"evaluation.compute", kComputeNames, 0, 0, kQuantizing,
       "activations of weight-only layers", NIBBLE_TARGET(compute)},
      {"evaluation.sequences", "", 0, kMany, kAll, "at most, for the report; 0: all",
       NIBBLE_TARGET(evaluation_sequences)},
      {"evaluation.images", "", 0, kMany, kAll, "at most, for the report; 0: all",
       NIBBLE_TARGET(evaluation_images)},
      {"evaluation.exact_images", "", 0, kMany, kQuantizing,
       "integer nets: compared code by code with the exact mode; 0: all",
       NIBBLE_TARGET(evaluation_exact_images)},
  };
}

}  // namespace

unsigned kind_of(const Recipe& recipe) {
  if (recipe.kind == "ptq") return kPtq;
  if (recipe.kind == "qat") return kQat;
  return recipe.kind == "lora" ? kLora : kFloat;
}

const std::vector<Setting>& recipe_settings() {
  static const std::vector<Setting> settings = make_settings();
  return settings;
}

std::string setting_takes(const Setting& setting) {
  Recipe recipe;
  const SettingTarget target = setting.target(recipe);
  if (std::holds_alternative<bool*>(target)) return "true or false";
  const std::string choices = setting.choices;
  if (choices == "scheme") return "a scheme (int4/g128@f16)";
  if (!choices.empty()) return joined(allowed_texts(setting), " or ");
  if (std::holds_alternative<std::string*>(target)) return "text";
  const char* what = std::holds_alternative<double*>(target) ? "a number" : "an integer";
  if (setting.highest >= kMany)
    return cat(what, " of at least ", number_text(setting.lowest));
  return cat(what, ", ", number_text(setting.lowest), " to ",
             number_text(setting.highest));
}

std::string setting_text(const Setting& setting, const Recipe& recipe) {
  Recipe copy = recipe;
  return std::visit(Printer{}, setting.target(copy));
}

Status assign_setting(const Setting& setting, const std::string& value, Recipe& recipe) {
  return std::visit(Assigner{setting, value}, setting.target(recipe));
}

std::string yaml_text(const std::string& text) {
  bool plain =
      !text.empty() && text != "true" && text != "false" && text != "null" && text != "~";
  if (plain &&
      text.find_first_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != 0) {
    plain = false;
  }
  for (const char c : text) {
    const bool safe = std::isalnum(static_cast<unsigned char>(c)) || c == '_' ||
                      c == '-' || c == '.' || c == '/' || c == '@' || c == '+' ||
                      c == ' ';
    plain = plain && safe;
  }
  if (plain && text.back() != ' ') return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '\n') {
      quoted += "\\n";
    } else if (c == '\t') {
      quoted += "\\t";
    } else {
      if (c == '"' || c == '\\') quoted += '\\';
      quoted += c;
    }
  }
  return quoted + "\"";
}

}  // namespace nibble
