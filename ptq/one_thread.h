// While one lives: LibTorch runs on this thread alone and records no gradients.
//
// LibTorch does not promise equal sums at different thread counts, so whatever decides a
// code runs under this guard, in parallel over pieces fixed by the problem
// (kernels/base/parallel.h). LibTorch keeps its thread count per thread: take the guard
// inside each parallel_for body.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

namespace nibble {

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

}  // namespace nibble
