// The table of verbs: what main looks up and --help lists.
#pragma once

#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

#define NIBBLE_VERB(name, function, summary) \
  Status function(const std::vector<std::string>& arguments);
#include "recipes/cli/verbs.inc"
#undef NIBBLE_VERB

struct Verb {
  const char* name;
  Status (*run)(const std::vector<std::string>& arguments);
  const char* summary;
};
const std::vector<Verb>& all_verbs();

// What nibble list can list, for its message and for completion.
std::vector<std::string> list_topics();

// One row of the table of exit codes.
struct ExitCode {
  int code;
  const char* meaning;
};
const std::vector<ExitCode>& exit_codes();

// The process exit code of an outcome; nibble --help lists them.
int exit_code(StatusCode code);

}  // namespace nibble
