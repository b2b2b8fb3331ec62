// A recipe: YAML (or a built-in by name) with --set overrides, resolved against a Program
// into a Plan before anything heavy starts. No LibTorch here.
//
//   recipe text + --set  --load_recipe-->  Recipe  --make_plan(program)-->  Plan
//
// Errors say `file:line: what; found ...; allowed ...`: an unknown key (with the nearest
// known one), a wrong type, a scheme that does not parse, a pattern that matches nothing,
// a layer that no pattern matches, an impossible combination. invalid_argument; not_found
// for a recipe or file that does not exist. Every key with its meaning: recipe_keys().
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/base/glob.h"
#include "kernels/program/edits/rotate.h"
#include "kernels/program/program.h"
#include "ptq/plan.h"
#include "qat/train_options.h"
#include "recipes/eval/quality_gate.h"

namespace nibble {

// One entry of `layers`; the first whose pattern matches a layer's node name decides it.
struct LayerRule {
  // Glob over node names ("model.layers.*.mlp.*", "*"), or $first, $last: the program's.
  std::string pattern;
  std::string
      weight;  // scheme text; "float" keeps the layer's own dtype; "" = the recipe's
  std::string method;          // rtn | gptq; "" = the recipe's
  std::string input;           // activation scheme text of signed values; "" none;
                               // "float": this layer reads floats (static recipes)
  std::string input_unsigned;  // the same after a ReLU (static recipes)
  std::string reason;          // why it, or its input, stays float
  std::optional<int64_t> low_rank;  // of the factors beside it; none: the recipe's
  bool optional = false;  // may match nothing (built-ins serve several architectures)
  int line = 0;
  bool operator==(const LayerRule&) const = default;
};

struct Recipe {
  std::string name, description,
      source;                     // source: "built-in w4a16-gptq" or the file's path
  std::string kind = "ptq";       // ptq | qat | float | lora
  std::vector<LayerRule> layers;  // first match wins

  // The scheme of layers whose rule names none: `weight`, else made from the four below.
  std::string weight;
  int64_t bits = 4;
  int64_t group = 128;        // along a row; 0: the whole row
  bool symmetric = true;      // int4/g128@f16, or uint4/g128@f16+z/g128@uint4
  std::string scale = "f16";  // element of the scales

  // The ends of a language model, whatever their rules say: a scheme, or "float"; "": as
  // the rules say. Where both are one tensor, one of the two keys decides for both.
  std::string embedding, lm_head;

  std::string method = "rtn";
  ScaleRule scale_rule;
  std::string transforms;  // of the float model, in order, commas between: "awq"
  double smoothquant_alpha = 0;
  double equalize_alpha = 0.7;
  GptqOptions gptq;
  AutoRoundOptions autoround;
  AdaRoundOptions adaround;
  // Low-rank compensation of the quantized linear layers of blocks, 0: none; of the error
  // of their outputs or of their weights.
  int64_t low_rank_rank = 0;
  std::string low_rank_error = "outputs";
  // Mixed precision: schemes with commas between, and one budget; 0: none.
  std::string mixed_schemes;
  double mixed_bits = 0, mixed_megabytes = 0, mixed_milliseconds = 0;

  bool static_activations = false;  // CNNs: integer values, batch norms folded
  std::string signed_activation = kSignedActivation,
              unsigned_activation = kUnsignedActivation;
  std::string observer = "minmax";
  std::string images = "normalized";  // normalized | bytes: what the integer path reads
  // Images, for one of the two; 0: none.
  int64_t bias_correction = 0, batch_norm_reestimation = 0;
  int64_t calibration_sequences = 128, calibration_length = 512;  // sequences: or images
  int64_t minimum_tokens_per_expert = Plan::kFewTokens;

  TrainOptions train;
  bool learn_weight_scale = true, learn_zero_point = true, learn_activation_scale = true;
  std::string activation_estimator = "lsq";  // lsq | pact
  std::string weight_estimator = "plain";    // plain | dorefa
  std::string trained = "all";               // all | layers | scales
  // Blocks alone, before the whole (epochs 0: not); the rest of its settings are train's.
  TrainOptions blocks{.learning_rate = 1e-4, .scale_learning_rate = 4e-5, .epochs = 0};
  int64_t blocks_sequences = 512;
  // With batch norms in place, before the fold; the rest of its settings are train's.
  TrainOptions norms{.learning_rate = 0.01, .scale_learning_rate = 0.0005, .epochs = 0};
  int64_t lora_rank = 16;
  std::string lora_pattern = "*";
  bool lora_merge = true;
  std::string teacher;          // distillation: a model's path; "": the float model
  int64_t sequence_length = 0;  // training; 0: the model's context, at most 512
  bool data_per_line = false;   // text: each line alone
  int64_t data_min_chars = 0;
  bool data_append_eos = false;  // per_line: each whole line ends with EOS
  int64_t data_images = 0;       // to train on, at most; 0: all
  bool data_augment = true;      // images: shifted by up to 4 pixels, mirrored
  double data_mixup = 0;         // images: alpha of the Beta that mixes pairs; 0: none
  std::string data_carry;        // nets over values: "OUTPUT=INPUT, ..."; "": no streams
  int64_t data_window = 8;       // steps of a stream that training goes through at once

  std::string rotation;        // parts of kernels/program/edits/rotate.h, commas between
  uint64_t rotation_seed = 1;  // of the residual stream's signs
  std::string kv = "f32";      // what KV caches are stored as: kernels/scheme/kv_scheme.h
  QualityGate gate;        // what the artifact must reach to be kept as one

  std::string compute = "float";      // compute.h's names: how the artifact is evaluated
  int64_t evaluation_sequences = 64;  // at most, for the report; 0: all
  int64_t evaluation_images = 2000;
  int64_t evaluation_exact_images =
      8;  // compared code by code with the exact mode; 0: all

  std::string weight_scheme() const;  // `weight`, or what bits .. scale spell
  bool is_mixed() const {
    return mixed_bits > 0 || mixed_megabytes > 0 || mixed_milliseconds > 0;
  }
  std::vector<std::string> transform_list() const;
  Result<RotateOptions> rotate_options() const;  // invalid_argument: no such part
  bool uses_method(const std::string& name) const;
  bool uses_low_rank() const;
  bool needs_calibration() const;  // a method or an observer looks at data
  bool kv_needs_calibration() const;  // kv is static and brings no scale
  bool has_static_input() const;  // a rule's input has one scale for all tokens
};

// overrides: "KEY=VALUE" with a dotted key ("train.steps=60"); "seed" is train.seed.
Result<Recipe> load_recipe(const std::string& name_or_file,
                           const std::vector<std::string>& overrides);
// The same from YAML text; source names it in messages.
Result<Recipe> parse_recipe(const std::string& yaml, const std::string& source,
                            const std::vector<std::string>& overrides);
std::vector<std::string> builtin_recipes();
// The text of a built-in with its comments; not_found suggests the nearest.
Result<std::string> builtin_recipe_text(const std::string& name);

// YAML of every resolved setting; parse_recipe reads it back to an equal recipe.
std::string print_recipe(const Recipe& recipe);

// Every key that a recipe and --set know, one line each: key, what it takes, what it
// means.
std::string recipe_keys();

// "a, b" -> {"a", "b"}.
std::vector<std::string> comma_list(const std::string& text);

// One row for every layer tensor of the program, floats too, and every activation scheme.
// Recipes with static activations need a program whose batch norms are folded.
Result<Plan> make_plan(const Recipe& recipe, const Program& program);
// The model that make_plan, calibrate and freeze take (ptq/plan.h): its batch norms, and
// the normalization of images, folded where the recipe's activations ask for it.
Result<Artifact> prepare_for_recipe(const Artifact& model, const Recipe& recipe);

}  // namespace nibble
