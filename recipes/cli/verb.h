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

// The process exit code of an outcome; nibble --help lists them.
int exit_code(StatusCode code);

}  // namespace nibble
