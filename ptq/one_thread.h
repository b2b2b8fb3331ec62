// LibTorch on one thread a task, tasks in parallel: how everything that decides a code
// runs.
//
// LibTorch does not promise equal sums at different thread counts. So work is cut into
// tasks fixed by the problem; each runs with one intra-op thread, and no task reads
// another's output.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <exception>
#include <functional>
#include <mutex>

#include "kernels/base/parallel.h"

namespace nibble {

// While one lives, LibTorch uses this thread alone and records no gradients.
class OneThread {
 public:
  OneThread() : before_(at::get_num_threads()) {
    if (before_ != 1) at::set_num_threads(1);
  }
  ~OneThread() {
    if (before_ != 1) at::set_num_threads(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
  at::NoGradGuard no_gradients_;
};

// body(i) once for every i in [0, n), each as above; throws what the lowest failing i
// threw.
inline void in_parallel(int64_t n, const std::function<void(int64_t)>& body) {
  const OneThread one_thread;
  std::mutex mutex;
  int64_t failed = n;
  std::exception_ptr error;
  parallel_for(n, [&](int64_t i) {
    // Pool threads keep the setting: MKL's is global, and a restore here would reach
    // others.
    if (at::get_num_threads() != 1) at::set_num_threads(1);
    const at::NoGradGuard no_gradients;
    try {
      body(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (i < failed) {
        failed = i;
        error = std::current_exception();
      }
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace nibble
