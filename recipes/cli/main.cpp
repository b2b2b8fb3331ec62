// nibble VERB ...: finds the verb, runs it, turns its Status into one line and an exit
// code.
#include <poll.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iomanip>
#include <iostream>

#include "kernels/artifact/artifact.h"
#include "kernels/base/cancel.h"
#include "recipes/cli/verb.h"
#include "recipes/recipe/nearest_name.h"
#include "recipes/torch/pipeline.h"

namespace nibble {
namespace {

extern "C" void on_interrupt(int) { request_cancel(); }

void print_help() {
  std::cout << "nibble VERB ... : low-precision neural networks, from checkpoint to "
               "proof\n\nVerbs\n";
  for (const Verb& verb : all_verbs()) {
    std::cout << "  " << std::left << std::setw(11) << verb.name << verb.summary << "\n";
  }
  std::cout
      << "\nnibble VERB --help explains a verb; nibble --version prints the version.\n"
         "\nExit codes\n";
  for (const ExitCode& row : exit_codes()) {
    std::cout << "  " << std::right << std::setw(3) << row.code << "  " << row.meaning
              << "\n";
  }
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
  // A reader that has gone away (nibble ... | head) must not kill a verb half way.
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
      // Whoever ran "nibble ... | head" knows that the reader has left.
      pollfd out = {STDOUT_FILENO, 0, 0};
      if (poll(&out, 1, 0) == 1 && (out.revents & POLLERR) != 0) {
        return nibble::exit_code(nibble::StatusCode::io_error);
      }
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
