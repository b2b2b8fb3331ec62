// Errors as values: Status is an outcome, Result<T> a value or the error that prevented
// it.
//
// Message form: `[who] where: what was required; what was found; what to do`.
// kernels, export and the torch-free part of recipes return these and never throw, abort
// or print. ptq and qat throw nibble::Error (ptq/error.h) carrying a Status.
#pragma once

#include <optional>
#include <sstream>
#include <string>
#include <utility>

namespace nibble {

enum class StatusCode {
  ok,
  invalid_argument,  // the caller's request or option makes no sense
  out_of_range,      // a number outside what is allowed (NaN weight, zero scale, bad id)
  not_found,         // a file, tensor, recipe or layer that does not exist
  already_exists,    // an output that would be overwritten
  data_loss,         // a damaged or truncated file, a checksum that disagrees
  unsupported,       // understood, but nibble cannot do it (the message says what can)
  failed_precondition,  // right request, wrong state (not calibrated, not accounted for)
  io_error,             // the operating system refused: full disk, permissions
  resource_exhausted,   // a memory budget or limit
  cancelled,            // interrupted by the user
  rejected,             // done, but a quality gate that was asked for is not met
  internal,             // our own mistake
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message)
      : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == StatusCode::ok; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::ok;
  std::string message_;
};

inline Status ok_status() { return {}; }

// The name of a code as the CLI and tests print it, e.g. "data_loss".
const char* status_code_name(StatusCode code);

// Concatenates everything that an ostream prints: cat("row ", 3, " of ", 7).
template <class... Parts>
std::string cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
Status error(StatusCode code, const Parts&... parts) {
  return Status(code, cat(parts...));
}

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT: implicit on purpose
  Result(Status status) : status_(std::move(status)) {  // NOLINT: implicit on purpose
    if (status_.ok())
      status_ = Status(StatusCode::internal, "[status] Result made of ok");
  }
  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return std::move(*value_); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace nibble

#define NIBBLE_CONCAT_INNER(a, b) a##b
#define NIBBLE_CONCAT(a, b) NIBBLE_CONCAT_INNER(a, b)
#define NIBBLE_RETURN_IF_ERROR(expression)           \
  do {                                               \
    ::nibble::Status nibble_status_ = (expression);  \
    if (!nibble_status_.ok()) return nibble_status_; \
  } while (false)
// NIBBLE_ASSIGN_OR_RETURN(auto x, make_x());
#define NIBBLE_ASSIGN_OR_RETURN(target, expression)                              \
  NIBBLE_ASSIGN_OR_RETURN_INNER(NIBBLE_CONCAT(nibble_result_, __LINE__), target, \
                                expression)
#define NIBBLE_ASSIGN_OR_RETURN_INNER(name, target, expression) \
  auto name = (expression);                                     \
  if (!name.ok()) return name.status();                         \
  target = std::move(name).value()
