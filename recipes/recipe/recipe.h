// A recipe: YAML (or a built-in by name) with --set overrides, resolved against a Program into
// a Plan before anything heavy starts. No LibTorch here.
//
// Errors carry file, line, what was found and what is allowed: an unknown key, a pattern that
// matches nothing, a scheme that does not parse, an impossible combination.
#pragma once

#include <string>
#include <vector>

#include "kernels/program/program.h"
#include "ptq/plan.h"
#include "qat/train_options.h"

namespace nibble {

struct LayerRule {
  std::string pattern;  // glob over node names: "model.layers.*.mlp.*", "*"
  std::string weight;   // scheme text; "float" keeps the layer's own dtype
  std::string method;   // rtn | gptq; "" = the recipe's
  std::string input;    // activation scheme text; "" none
  std::string reason;   // for float
  int line = 0;
};

struct Recipe {
  std::string name, description, source;  // source: "built-in w4a16-gptq" or the file's path
  std::string kind;                       // ptq | qat | float
  std::vector<LayerRule> layers;          // first match wins
  std::string method = "rtn";
  ScaleRule scale_rule;
  std::string observer = "minmax";
  GptqOptions gptq;
  bool static_activations = false;        // CNNs: int8 values, batch norms folded
  std::string signed_activation, unsigned_activation;  // scheme texts of values
  int64_t calibration_sequences = 128, calibration_length = 512;
  TrainOptions train;
  bool learn_weight_scale = true, learn_activation_scale = true;
  int64_t sequence_length = 0;            // training; 0: the model's context, at most 512
  std::string compute = "float";          // float | int8: how the artifact is evaluated
};

Result<Recipe> load_recipe(const std::string& name_or_file, const std::vector<std::string>& overrides);
std::vector<std::string> builtin_recipes();
std::string print_recipe(const Recipe& recipe);  // YAML of every resolved setting
Result<Plan> make_plan(const Recipe& recipe, const Program& program);

}  // namespace nibble
