#include "kernels/base/cancel.h"

#include <atomic>

namespace nibble {
namespace {

// Lock-free, so that a signal handler may store to it.
std::atomic<bool> cancel_flag{false};
static_assert(std::atomic<bool>::is_always_lock_free);

}  // namespace

void request_cancel() { cancel_flag.store(true, std::memory_order_relaxed); }

void clear_cancel() { cancel_flag.store(false, std::memory_order_relaxed); }

bool cancel_requested() { return cancel_flag.load(std::memory_order_relaxed); }

Status check_cancelled(const char* who) {
  if (!cancel_requested()) return ok_status();
  return error(StatusCode::cancelled, "[", who, "] interrupted; nothing was written");
}

}  // namespace nibble
