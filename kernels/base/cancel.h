// A flag that Ctrl-C sets and long loops read, so that they can return `cancelled` and
// let destructors remove what is half-written.
#pragma once

#include "kernels/base/status.h"

namespace nibble {

void request_cancel();  // async-signal-safe
void clear_cancel();    // a test or an interactive caller goes on after a cancel
bool cancel_requested();
Status check_cancelled(
    const char* who);  // cancelled: `[who] interrupted; nothing was written`

}  // namespace nibble
