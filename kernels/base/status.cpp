#include "kernels/base/status.h"

namespace nibble {

const char* status_code_name(StatusCode code) {
  switch (code) {
    case StatusCode::ok:
      return "ok";
    case StatusCode::invalid_argument:
      return "invalid_argument";
    case StatusCode::out_of_range:
      return "out_of_range";
    case StatusCode::not_found:
      return "not_found";
    case StatusCode::already_exists:
      return "already_exists";
    case StatusCode::data_loss:
      return "data_loss";
    case StatusCode::unsupported:
      return "unsupported";
    case StatusCode::failed_precondition:
      return "failed_precondition";
    case StatusCode::io_error:
      return "io_error";
    case StatusCode::resource_exhausted:
      return "resource_exhausted";
    case StatusCode::cancelled:
      return "cancelled";
    case StatusCode::rejected:
      return "rejected";
    case StatusCode::internal:
      return "internal";
  }
  return "unknown";
}

}  // namespace nibble
