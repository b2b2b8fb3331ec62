#include "recipes/cli/verb.h"

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
    case StatusCode::rejected:
      return 11;
    case StatusCode::cancelled:
      return 130;  // 128 + SIGINT, as shells expect
  }
  return 1;
}

const std::vector<ExitCode>& exit_codes() {
  static const std::vector<ExitCode> rows = {
      {0, "done"},
      {1, "an internal error: please report it"},
      {2, "the request or the recipe makes no sense"},
      {3, "a damaged file"},
      {4, "something is not there"},
      {5, "unsupported, the message says what is"},
      {6, "the system refused: full disk, permissions"},
      {7, "a validation failed, or something is not ready"},
      {8, "a number out of range, such as a NaN weight"},
      {9, "the output exists"},
      {10, "a memory budget or limit was reached"},
      {11, "done, but a quality gate was not met: the artifact is at DIR.rejected"},
      {130, "interrupted; nothing half-written is left"},
  };
  return rows;
}

}  // namespace nibble
