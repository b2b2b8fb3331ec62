// nibble VERB ...: finds the verb, runs it, turns its Status into one line and an exit
// code.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>

#include "kernels/artifact/artifact.h"
#include "kernels/base/cancel.h"
#include "recipes/cli/verb.h"
#include "recipes/recipe/nearest_name.h"
#include "recipes/torch/pipeline.h"

namespace nibble {

const std::vector<Verb>& all_verbs() {
  static const std::vector<Verb> verbs = {
#define NIBBLE_VERB(name, function, summary) Verb{name, &function, summary},
#include "recipes/cli/verbs.inc"
#undef NIBBLE_VERB
  };
  return verbs;
}

int exit_code(StatusCode code) {
  switch (code) {
    case StatusCode::ok:
      return 0;
    case StatusCode::internal:
      return 1;
    case StatusCode::invalid_argument:
      return 2;
    case StatusCode::data_loss:
      return 3;
    case StatusCode::not_found:
      return 4;
    case StatusCode::unsupported:
      return 5;
    case StatusCode::io_error:
      return 6;
    case StatusCode::failed_precondition:
      return 7;
    case StatusCode::out_of_range:
      return 8;
    case StatusCode::already_exists:
      return 9;
    case StatusCode::resource_exhausted:
      return 10;
    case StatusCode::cancelled:
      return 130;  // 128 + SIGINT, as shells expect
  }
  return 1;
}

namespace {

extern "C" void on_interrupt(int) { request_cancel(); }

void print_help() {
  std::cout << "nibble VERB ... : low-precision neural networks, from checkpoint to "
               "proof\n\nVerbs\n";
  for (const Verb& verb : all_verbs()) {
    std::printf("  %-10s %s\n", verb.name, verb.summary);
  }
  std::fflush(stdout);
  std::cout
      << "\nnibble VERB --help explains a verb; nibble --version prints the version.\n"
         "\nExit codes\n"
         "  0 done   1 internal error   2 wrong request or recipe   3 damaged file\n"
         "  4 not found   5 unsupported   6 the system refused (disk, permissions)\n"
         "  7 validation failed or not ready   8 a number out of range (NaN, bad id)\n"
         "  9 output exists   10 a limit was reached   130 interrupted\n";
}

Status run(const std::vector<std::string>& arguments) {
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h" ||
      arguments[0] == "help") {
    print_help();
    return ok_status();
  }
  if (arguments[0] == "--version") {
    std::cout << kToolVersion
              << (has_torch() ? " with LibTorch\n" : " without LibTorch\n");
    return ok_status();
  }
  std::vector<std::string> names;
  for (const Verb& verb : all_verbs()) {
    if (arguments[0] == verb.name)
      return verb.run({arguments.begin() + 1, arguments.end()});
    names.emplace_back(verb.name);
  }
  return error(StatusCode::invalid_argument,
               "[nibble] command line: a verb is required; found '", arguments[0], "'",
               did_you_mean(arguments[0], names), "; allowed: ", joined(names, ", "));
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  // A reader that has gone away (nibble ... | head) is a write error, not a silent death.
  std::signal(SIGPIPE, SIG_IGN);
  struct sigaction action = {};
  action.sa_handler = nibble::on_interrupt;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);

  nibble::Status status;
  try {
    status = nibble::run({argv + 1, argv + argc});
  } catch (const std::bad_alloc&) {
    status = nibble::error(
        nibble::StatusCode::resource_exhausted,
        "[nibble] memory: an allocation failed; use a smaller model or batch");
  } catch (const std::exception& problem) {
    status = nibble::error(nibble::StatusCode::internal,
                           "[nibble] unexpected: ", problem.what());
  }
  if (status.ok()) {
    std::cout.flush();
    if (!std::cout) {
      status = nibble::error(nibble::StatusCode::io_error,
                             "[nibble] stdout: the output could not be written");
    }
  }
  if (!status.ok()) {
    // One line, whatever the message holds.
    std::string line = status.message();
    for (char& c : line) {
      if (c == '\n' || c == '\r') c = ' ';
    }
    std::fprintf(stderr, "nibble: %s\n", line.c_str());
  }
  return nibble::exit_code(status.code());
}
