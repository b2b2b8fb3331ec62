// How long CUDA calls take, for the benchmarks; errors end the process with a message.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <utility>

#include "kernels/base/status.h"

namespace nibble::cuda {

template <class T>
T require(Result<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", result.status().message().c_str());
    std::exit(1);
  }
  return std::move(result).value();
}
inline void require(const Status& status) {
  if (!status.ok()) require(Result<int>(status));
}

// Microseconds a call: the median of rounds of `calls` calls, each round a CUDA graph.
double microseconds(int calls, const std::function<void(int, void* stream)>& call);

// Bytes a microsecond that a kernel reads which does nothing else.
double read_bandwidth(int multiprocessors);

}  // namespace nibble::cuda
