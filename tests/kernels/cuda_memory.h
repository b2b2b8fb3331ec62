// Arrays in a Runner's memory, for the tests of CUDA kernels. Without memory or copies no
// test can go on: the process ends with the message.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/runtime/cuda_runner.h"

namespace nibble::cuda {

inline void require(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

inline void* upload_bytes(Runner& runner, const void* data, size_t bytes) {
  const Result<void*> at = runner.allocate(static_cast<int64_t>(bytes));
  require(at.status());
  require(runner.copy_in(*at, data, static_cast<int64_t>(bytes)));
  return *at;
}
template <class T>
T* upload(Runner& runner, const std::vector<T>& values) {
  return static_cast<T*>(upload_bytes(runner, values.data(), values.size() * sizeof(T)));
}
inline void* upload(Runner& runner, const Bytes& bytes) {
  return upload_bytes(runner, bytes.data(), bytes.size());
}
// Into `values`, of the size that was uploaded.
template <class T>
void download(Runner& runner, const T* from, std::vector<T>& values) {
  require(runner.copy_out(values.data(), from,
                          static_cast<int64_t>(values.size() * sizeof(T))));
}

}  // namespace nibble::cuda
