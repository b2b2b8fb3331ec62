// The keys of a recipe as a table: reading, printing and the help page are loops over it.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "recipes/recipe/recipe.h"

namespace nibble {

enum RecipeKinds : unsigned {
  kPtq = 1,
  kQat = 2,
  kFloat = 4,
  kLora = 8,
  kQuantizing = kPtq | kQat | kLora,
  kTraining = kQat | kFloat | kLora,
  kAll = kQuantizing | kTraining
};
unsigned kind_of(const Recipe& recipe);

using SettingTarget = std::variant<std::string*, int64_t*, int*, uint64_t*, double*,
                                   bool*, ScaleRule::Kind*>;

struct Setting {
  const char* key;         // dotted: "train.steps"
  const char* choices;     // texts: "adamw|sgd", "" = any; "scheme"; "method"
  double lowest, highest;  // numbers
  unsigned kinds;          // the recipe kinds it means something to
  const char* meaning;
  SettingTarget (*target)(Recipe& recipe);
};
const std::vector<Setting>& recipe_settings();

std::string setting_takes(const Setting& setting);  // "an integer, 0 to 65536"
std::string setting_text(const Setting& setting,
                         const Recipe& recipe);  // the value as YAML

// Sets from a scalar's text. invalid_argument: `<key> takes ...; found '...'; allowed
// ...`, to be prefixed with the place.
Status assign_setting(const Setting& setting, const std::string& value, Recipe& recipe);

// A YAML scalar that reads back as this text: quoted when it has to be.
std::string yaml_text(const std::string& text);

}  // namespace nibble
