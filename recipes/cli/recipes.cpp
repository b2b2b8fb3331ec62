// nibble recipes [NAME|FILE]: what can be asked of quantize and train.
#include <iostream>

#include "recipes/cli/command_line.h"
#include "recipes/cli/verb.h"
#include "recipes/recipe/recipe.h"
#include "recipes/report/text_table.h"

namespace nibble {

Status run_recipes_verb(const std::vector<std::string>& arguments) {
  CommandLine line(
      "recipes [RECIPE] [--set KEY=VALUE]...",
      "Lists the built-in recipes; with a name or file, prints that recipe with every "
      "setting resolved.");
  line.positional("RECIPE", false);
  line.list("set", "KEY=VALUE", "change a setting");
  line.flag(
      "source",
      "print a built-in's text with its comments instead, to start a file of one's own");
  line.flag("keys", "print every key that a recipe knows");
  line.example(
      "nibble recipes",
      "the built-in recipes");
  line.example(
      "nibble recipes w4a16-gptq --set group=32 > mine.yaml",
      "a recipe file to start from");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();

  if (line.has("keys")) {
    std::cout << recipe_keys();
    return ok_status();
  }
  const std::string name = line.text("RECIPE");
  if (name.empty()) {
    std::vector<std::vector<std::string>> rows = {{"recipe", "kind", "what it does"}};
    for (const std::string& builtin : builtin_recipes()) {
      NIBBLE_ASSIGN_OR_RETURN(const Recipe recipe, load_recipe(builtin, {}));
      rows.push_back({recipe.name, recipe.kind, recipe.description});
    }
    std::cout << table_text(rows);
    return ok_status();
  }
  if (line.has("source")) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, builtin_recipe_text(name));
    std::cout << text;
    return ok_status();
  }
  NIBBLE_ASSIGN_OR_RETURN(const Recipe recipe, load_recipe(name, line.list("set")));
  std::cout << print_recipe(recipe);
  return ok_status();
}

}  // namespace nibble
