// A small thread pool with a fixed split: results never depend on the thread count.
//
// parallel_for(n, body) calls body(i) once for every i in [0, n), from any thread, in any
// order; callers choose n from the problem alone (never from the thread count) and give
// each i its own outputs. Nested calls run inline. body must not throw. Nothing is
// allocated but the threads, by the first call.
#pragma once

#include <cstdint>

#include "kernels/base/function_ref.h"

namespace nibble {

int thread_count();            // default: NIBBLE_THREADS, else the hardware's
void set_thread_count(int n);  // >= 1; not while a parallel_for runs
void parallel_for(int64_t n, FunctionRef<void(int64_t)> body);

}  // namespace nibble
