// What a person meets first: help with examples that parse, lists from the tables, shell
// completion, the manual page. All are made from what the verbs declare.
#include <gmock/gmock.h>

#include <cstdio>

#include "recipes/cli/command_line.h"
#include "recipes/cli/verb.h"
#include "recipes/recipe/recipe.h"
#include "tests/recipes/command.h"

namespace nibble {
namespace {

using testing::HasSubstr;

class CliSurface : public testing::Test {
 protected:
  TemporaryDirectory directory_;
  const std::filesystem::path& scratch() const { return directory_.path(); }
};

// A command as a shell splits it, up to a pipe or redirection; double quotes only.
std::vector<std::string> words_of(const std::string& command) {
  std::vector<std::string> words;
  std::string word;
  bool quoted = false, any = false;
  for (const char c : command + " ") {
    if (c == '"') {
      quoted = !quoted;
      any = true;
    } else if (!quoted && (c == ' ')) {
      if (any || !word.empty()) words.push_back(word);
      word.clear();
      any = false;
      if (!words.empty() && (words.back() == "|" || words.back() == ">")) {
        words.pop_back();
        break;
      }
    } else {
      word += c;
    }
  }
  return words;
}

// The standard output of a shell command; its exit code in `code`.
std::string shell(const std::string& command, int& code) {
  std::string out;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return out;
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
  const int status = pclose(pipe);
  code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return out;
}
bool has_program(const std::string& name) {
  int code = 0;
  shell("command -v " + name, code);
  return code == 0;
}

TEST_F(CliSurface, EveryVerbHasTwoExamplesThatParse) {
  ASSERT_GE(all_verbs().size(), 10u);
  for (const Verb& verb : all_verbs()) {
    const auto description = describe_verb(verb);
    ASSERT_TRUE(description.ok()) << verb.name << description.status().message();
    EXPECT_EQ(description->name, verb.name);
    EXPECT_GE(description->examples.size(), 2u) << verb.name;
    for (const ExampleDescription& example : description->examples) {
      EXPECT_THAT(example.command, HasSubstr(std::string("nibble ") + verb.name));
      std::vector<std::string> words = words_of(example.command);
      if (words.size() < 2 || words[0] != "nibble") continue;  // source <(nibble ...)
      EXPECT_EQ(words[1], verb.name) << example.command;
      const auto parsed = describe_verb(verb, {words.begin() + 2, words.end()});
      EXPECT_TRUE(parsed.ok()) << example.command << ": " << parsed.status().message();
    }
  }
}

TEST_F(CliSurface, ParsingAnExampleCanFail) {
  for (const Verb& verb : all_verbs()) {
    const auto parsed = describe_verb(verb, {"--no-such-option"});
    ASSERT_FALSE(parsed.ok()) << verb.name;
    EXPECT_THAT(parsed.status().message(), HasSubstr("no-such-option")) << verb.name;
  }
}

TEST_F(CliSurface, HelpShowsTheExamples) {
  for (const size_t i : {size_t{0}, all_verbs().size() - 1}) {
    const Verb& verb = all_verbs()[i];
    const Outcome help = nibble({verb.name, "--help"}, scratch());
    EXPECT_EQ(help.code, 0) << help.error;
    EXPECT_THAT(help.out, HasSubstr("Examples\n")) << verb.name;
    const auto description = describe_verb(verb);
    ASSERT_TRUE(description.ok());
    for (const ExampleDescription& example : description->examples)
      EXPECT_THAT(help.out, HasSubstr(example.command));
  }
  const Outcome help = nibble({"--help"}, scratch());
  for (const Verb& verb : all_verbs()) EXPECT_THAT(help.out, HasSubstr(verb.summary));
  for (const ExitCode& row : exit_codes()) EXPECT_THAT(help.out, HasSubstr(row.meaning));
}

TEST_F(CliSurface, ListsComeFromTheTables) {
  for (const std::string& topic : list_topics()) {
    const nlohmann::json json = parsed(nibble({"list", topic, "--json"}, scratch()));
    ASSERT_TRUE(json[topic].is_array());
    EXPECT_GE(json[topic].size(), 2u) << topic;
  }
  const Outcome text = nibble({"list", "methods"}, scratch());
  EXPECT_EQ(text.code, 0) << text.error;
  EXPECT_THAT(text.out, ::testing::ContainsRegex("gptq +calibration"));
  const nlohmann::json recipes = parsed(nibble({"list", "recipes", "--json"}, scratch()));
  EXPECT_EQ(recipes["recipes"].size(), builtin_recipes().size());
  const nlohmann::json schemes = parsed(nibble({"list", "schemes", "--json"}, scratch()));
  EXPECT_EQ(schemes["schemes"][0]["scheme"], "int4/g128@f16");
  EXPECT_EQ(schemes["schemes"][0]["bits a weight"], "4.125");
  // The reference kernels run everywhere, and --cpu takes the others away.
  const nlohmann::json kernels =
      parsed(nibble({"list", "kernels", "--json", "--cpu", "reference"}, scratch()));
  int reference = 0;
  for (const auto& row : kernels["kernels"]) {
    const std::string name = row["kernel, the best first"];
    if (name.ends_with("__cuda")) continue;  // a GPU's or nobody's
    const bool is_reference = name.find("reference") != std::string::npos;
    reference += is_reference;
    EXPECT_EQ(row["usable here"], is_reference ? "yes" : "no") << name;
  }
  EXPECT_GE(reference, 6);

  const Outcome wrong = nibble({"list", "recipies"}, scratch());
  EXPECT_EQ(wrong.code, 2);
  EXPECT_EQ(
      last_line(wrong, scratch()),
      "nibble: [list] TOPIC: one of recipes, schemes, methods, transforms, formats, "
      "architectures, kernels is required; found 'recipies' (did you mean "
      "'recipes'?); nibble list recipes is a start");
}

TEST_F(CliSurface, BashCompletes) {
  const Outcome script = nibble({"completion", "bash"}, scratch());
  ASSERT_EQ(script.code, 0) << script.error;
  const auto file = scratch() / "completion.bash";
  std::ofstream(file) << script.out;
  const auto complete = [&](const std::string& words, int at) {
    int code = 0;
    const std::string out = shell("bash -c 'source " + file.string() + "; COMP_WORDS=(" +
                                      words + "); COMP_CWORD=" + std::to_string(at) +
                                      "; _nibble; echo \"${COMPREPLY[@]}\"'",
                                  code);
    EXPECT_EQ(code, 0) << out;
    return out;
  };
  EXPECT_EQ(complete("nibble qu", 1), "quantize\n");
  EXPECT_EQ(complete("nibble quantize --rec", 2), "--recipe\n");
  EXPECT_EQ(complete("nibble quantize --recipe w4a16-", 3),
            "w4a16-autoround w4a16-awq w4a16-gptq w4a16-hqq w4a16-qat w4a16-rtn "
            "w4a16-tuned\n");
  EXPECT_EQ(complete("nibble evaluate x --compute \"\"", 4), "float bf16 int8\n");
  EXPECT_EQ(complete("nibble list ker", 2), "kernels\n");
  // Every option of every verb.
  for (const Verb& verb : all_verbs()) {
    const auto description = describe_verb(verb);
    ASSERT_TRUE(description.ok());
    const std::string all = complete(std::string("nibble ") + verb.name + " --", 2);
    for (const OptionDescription& option : description->options)
      EXPECT_THAT(all, HasSubstr("--" + option.name)) << verb.name;
  }
  EXPECT_EQ(nibble({"completion", "fish"}, scratch()).code, 2);
}

TEST_F(CliSurface, ZshReadsItsScript) {
  if (!has_program("zsh")) GTEST_SKIP() << "needs zsh, which is not installed";
  const Outcome script = nibble({"completion", "zsh"}, scratch());
  ASSERT_EQ(script.code, 0) << script.error;
  const auto file = scratch() / "_nibble";
  std::ofstream(file) << script.out;
  int code = 0;
  const std::string out = shell("zsh -n " + file.string(), code);
  EXPECT_EQ(code, 0) << out;
  EXPECT_EQ(out, "");
  // _describe and _arguments, replaced by functions that print what they are given.
  const std::string given =
      shell("zsh -f -c 'compdef() { :; }; _arguments() { print -l -- \"$@\"; }; source " +
                file.string() + "; words=(nibble quantize \"\"); CURRENT=3; _nibble'",
            code);
  EXPECT_EQ(code, 0) << given;
  EXPECT_THAT(given, HasSubstr("--recipe["));
  EXPECT_THAT(given, HasSubstr("w4a16-gptq"));
}

TEST_F(CliSurface, TheManualPageIsWhole) {
  const Outcome page = nibble({"man"}, scratch());
  ASSERT_EQ(page.code, 0) << page.error;
  for (const Verb& verb : all_verbs())
    EXPECT_THAT(page.out, HasSubstr(std::string(".SS nibble ") + verb.name));
  if (!has_program("groff")) GTEST_SKIP() << "needs groff, which is not installed";
  const auto file = scratch() / "nibble.1";
  std::ofstream(file) << page.out;
  int code = 0;
  const std::string warnings = shell("groff -man -Tutf8 -ww -z " + file.string(), code);
  EXPECT_EQ(code, 0);
  EXPECT_EQ(warnings, "");
  const std::string text = shell("groff -man -Tutf8 -P-cbou " + file.string(), code);
  EXPECT_THAT(text, HasSubstr("EXIT STATUS"));
  EXPECT_THAT(text, HasSubstr("--recipe NAME|FILE"));
}

}  // namespace
}  // namespace nibble
