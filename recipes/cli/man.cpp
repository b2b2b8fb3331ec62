// nibble man: the manual page in roff, made from what the verbs declare.
#include <iostream>

#include "kernels/artifact/artifact.h"
#include "kernels/base/cpu.h"
#include "recipes/cli/command_line.h"
#include "recipes/cli/verb.h"

namespace nibble {
namespace {

// Text as roff reads it: a backslash and a hyphen stand for themselves, and a line does
// not begin with a control character.
std::string roff(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool line_start = i == 0 || text[i - 1] == '\n';
    if (line_start && (c == '.' || c == '\'')) out += "\\&";
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else if (c == '\n' && i + 1 < text.size() && text[i + 1] == '\n') {
      out += "\n.PP\n";
      while (i + 1 < text.size() && text[i + 1] == '\n') ++i;
    } else if (line_start && c == ' ') {
      while (i + 1 < text.size() && text[i + 1] == ' ') ++i;
      out += ".br\n";  // an indented line, as of a table, stays a line
    } else {
      out += c;
    }
  }
  return out;
}

std::string verb_page(const VerbDescription& verb) {
  std::string page = ".SS nibble " + roff(verb.usage) + "\n" + roff(verb.summary) + "\n";
  for (const OptionDescription& option : verb.options) {
    page += ".TP\n.B \\-\\-" + roff(option.name);
    if (!option.value.empty()) page += " \\fI" + roff(option.value) + "\\fR";
    page += "\n" + roff(option.description);
    if (!option.otherwise.empty()) page += " (default: " + roff(option.otherwise) + ")";
    page += "\n";
  }
  for (const ExampleDescription& example : verb.examples) {
    page += ".PP\n" + roff(example.purpose) + ":\n.PP\n.RS\n.EX\n" +
            roff(example.command) + "\n.EE\n.RE\n";
  }
  return page;
}

}  // namespace

Status run_man_verb(const std::vector<std::string>& arguments) {
  CommandLine line("man", "Prints the manual page.");
  line.example("nibble man | man -l -", "read it");
  line.example("nibble man > nibble.1", "keep it; cmake --install puts one in share/man");
  NIBBLE_ASSIGN_OR_RETURN(const bool go_on, line.parse(arguments));
  if (!go_on) return ok_status();

  std::string page =
      ".TH NIBBLE 1 \"\" \"" + roff(kToolVersion) +
      "\" \"User Commands\"\n.SH NAME\nnibble \\- low\\-precision neural networks, from "
      "checkpoint to proof\n.SH SYNOPSIS\n.B nibble\n.I VERB\n\\&...\n.SH DESCRIPTION\n"
      "Quantizes, trains, exports, proves and runs low\\-precision neural networks.\n"
      "MODEL is a Hugging Face directory, an artifact of nibble, or a single model "
      "file.\n"
      ".SH VERBS\n";
  for (const Verb& verb : all_verbs()) {
    NIBBLE_ASSIGN_OR_RETURN(const VerbDescription described, describe_verb(verb));
    page += verb_page(described);
  }
  page += ".SH EXIT STATUS\n";
  for (const ExitCode& row : exit_codes())
    page += ".TP\n.B " + std::to_string(row.code) + "\n" + roff(row.meaning) + "\n";
  page +=
      ".SH ENVIRONMENT\n.TP\n.B NIBBLE_THREADS\nthreads to use; results do not depend on "
      "it\n.TP\n.B NIBBLE_CPU\nkernels of at most this level: " +
      cpu_level_names() + "\n";
  std::cout << page;
  return ok_status();
}

}  // namespace nibble
