// nibble completion bash|zsh: a script made from what the verbs declare, so that it never
// lags behind them.
#include <array>
#include <iostream>
#include <sstream>

#include "export/exporter.h"
#include "export/ggml/ggml_type.h"
#include "kernels/base/cpu.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/verb.h"
#include "recipes/models/architecture.h"
#include "recipes/recipe/deployment.h"
#include "recipes/recipe/nearest_name.h"
#include "recipes/recipe/recipe.h"

namespace nibble {
namespace {

// Words that an option's or argument's value may be; empty: a file. "" in front of them
// stands for "and files too".
struct Choices {
  std::vector<std::string> words;
  bool files = true;
};

Choices choices_of(const std::string& name) {
  Choices out;
  if (name == "recipe" || name == "RECIPE") {
    out.words = builtin_recipes();
  } else if (name == "architecture") {
    for (const ModelArchitecture& row : all_architectures())
      out.words.emplace_back(row.name);
    out.files = false;
  } else if (name == "to") {
    for (const Exporter& row : all_exporters()) out.words.emplace_back(row.name);
    out.files = false;
  } else if (name == "requantize") {
    for (const GgmlType& row : all_ggml_types()) out.words.emplace_back(row.name);
    out.files = false;
  } else if (name == "dtype") {
    out = {{"f32", "bf16", "f16"}, false};
  } else if (name == "target") {
    for (const DeploymentTarget& row : deployment_targets()) out.words.emplace_back(row.name);
    out.files = false;
  } else if (name == "cpu") {
    out.files = false;
    std::istringstream levels(cpu_level_names());
    for (std::string level; std::getline(levels >> std::ws, level, ',');)
      out.words.push_back(level);
  } else if (name == "compute") {
    out = {{"float", "bf16", "int8"}, false};
  } else if (name == "TOPIC") {
    out = {list_topics(), false};
  } else if (name == "SHELL") {
    out = {{"bash", "zsh"}, false};
  }
  return out;
}

// Inside single quotes of a shell.
std::string in_quotes(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? "'\\''" : std::string(1, c);
  return out + "'";
}

std::string bash_script(const std::vector<VerbDescription>& verbs) {
  std::string names, cases;
  for (const VerbDescription& verb : verbs) {
    names += (names.empty() ? "" : " ") + verb.name;
    std::string options, values;
    for (const OptionDescription& option : verb.options) {
      options += (options.empty() ? "--" : " --") + option.name;
      if (option.value.empty()) continue;
      const Choices choices = choices_of(option.name);
      values += "        --" + option.name +
                ") words=" + in_quotes(joined(choices.words, " ")) +
                "; files=" + (choices.files ? "1" : "0") + "; value=1;;\n";
    }
    Choices argument;
    if (!verb.positionals.empty()) argument = choices_of(verb.positionals.front());
    const bool files = !verb.positionals.empty() && argument.files;
    cases += "    " + verb.name + ")\n      options=" + in_quotes(options) +
             "\n      words=" + in_quotes(joined(argument.words, " ")) +
             "; files=" + (files ? "1" : "0") + "\n      case \"$previous\" in\n" +
             values + "      esac;;\n";
  }
  return "# bash completion of nibble: source <(nibble completion bash)\n"
         "_nibble() {\n"
         "  local current=${COMP_WORDS[COMP_CWORD]} "
         "previous=${COMP_WORDS[COMP_CWORD-1]}\n"
         "  local options= words= files=0 value=0\n"
         "  COMPREPLY=()\n"
         "  if ((COMP_CWORD == 1)); then\n"
         "    COMPREPLY=($(compgen -W " +
         in_quotes(names + " --help --version") +
         " -- \"$current\"))\n"
         "    return\n"
         "  fi\n"
         "  case ${COMP_WORDS[1]} in\n" +
         cases +
         "  esac\n"
         "  if ((!value)) && [[ $current == -* ]]; then\n"
         "    COMPREPLY=($(compgen -W \"$options\" -- \"$current\"))\n"
         "    return\n"
         "  fi\n"
         "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
         "  if ((files)); then\n"
         "    compopt -o filenames 2> /dev/null\n"
         "    COMPREPLY+=($(compgen -f -- \"$current\"))\n"
         "  fi\n"
         "}\n"
         "complete -F _nibble nibble\n";
}

// In _arguments' specs, : [ ] and \ have a meaning of their own.
std::string zsh_text(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == ':' || c == '[' || c == ']' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

std::string zsh_action(const std::string& name) {
  const Choices choices = choices_of(name);
  if (choices.words.empty()) return "_files";
  const std::string words = "(" + joined(choices.words, " ") + ")";
  if (!choices.files) return words;
  // Two sources at once: words and files.
  return "{ compadd -- " + joined(choices.words, " ") + "; _files }";
}

std::string zsh_script(const std::vector<VerbDescription>& verbs) {
  std::string names, cases;
  for (const VerbDescription& verb : verbs) {
    std::string summary;
    for (const Verb& row : all_verbs()) {
      if (verb.name == row.name) summary = row.summary;
    }
    names += "    " + in_quotes(verb.name + ":" + zsh_text(summary)) + "\n";
    cases += "    " + verb.name + ")\n      _arguments";
    for (const OptionDescription& option : verb.options) {
      std::string spec = "--" + option.name + "[" + zsh_text(option.description) + "]";
      if (!option.value.empty())
        spec += ":" + zsh_text(option.value) + ":" + zsh_action(option.name);
      cases += " \\\n        " + in_quotes(spec);
    }
    for (const std::string& positional : verb.positionals) {
      cases +=
          " \\\n        " + in_quotes(":" + positional + ":" + zsh_action(positional));
    }
    cases += ";;\n";
  }
  return "#compdef nibble\n# zsh completion of nibble: nibble completion zsh > "
         "\"${fpath[1]}/_nibble\"\n"
         "_nibble() {\n  local -a verbs\n  verbs=(\n" +
         names +
         "  )\n"
         "  if ((CURRENT == 2)); then\n    _describe verb verbs\n    return\n  fi\n"
         "  local verb=${words[2]}\n"
         "  shift words\n  ((CURRENT--))\n"
         "  case $verb in\n" +
         cases +
         "  esac\n}\n"
         "if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _nibble \"$@\"; else "
         "compdef "
         "_nibble nibble; fi\n";
}

}  // namespace

Status run_completion_verb(const std::vector<std::string>& arguments) {
  CommandLine line("completion SHELL",
                   "Prints a completion script for bash or zsh: verbs, options, recipes, "
                   "formats, files.");
  line.positional("SHELL");
  line.example("source <(nibble completion bash)", "completion in this bash");
  line.example("nibble completion zsh > \"${fpath[1]}/_nibble\"",
               "completion in every new zsh");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();
  const std::string shell = line.text("SHELL");
  if (shell != "bash" && shell != "zsh") {
    return error(StatusCode::invalid_argument,
                 "[completion] SHELL: bash or zsh required; found '", shell,
                 "'; other shells have no script yet");
  }
  std::vector<VerbDescription> verbs;
  for (const Verb& verb : all_verbs()) {
    NIBBLE_ASSIGN_OR_RETURN(VerbDescription described, describe_verb(verb));
    verbs.push_back(std::move(described));
  }
  std::cout << (shell == "bash" ? bash_script(verbs) : zsh_script(verbs));
  return ok_status();
}

}  // namespace nibble
