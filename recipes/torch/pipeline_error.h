// The seam: what LibTorch and the torch folders throw, as a Status.
#pragma once

#include <new>

#include "ptq/error.h"

namespace nibble {

// body returns a Result; exceptions become its status, LibTorch's own cut to their first
// line.
template <class Body>
auto catching(const char* verb, const Body& body) -> decltype(body()) {
  try {
    return body();
  } catch (const Error& problem) {
    return problem.status();
  } catch (const std::bad_alloc&) {
    return error(
        StatusCode::resource_exhausted, "[", verb,
        "] memory: an allocation failed; use a smaller batch or shorter sequences");
  } catch (const std::exception& problem) {
    const std::string what = problem.what();
    return error(StatusCode::internal, "[", verb,
                 "] LibTorch: ", what.substr(0, what.find('\n')));
  }
}

}  // namespace nibble
