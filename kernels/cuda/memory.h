// The GPU and its memory, without CUDA's headers: cuda.cu or, in a build without nvcc,
// no_cuda.cpp, where every function says that there is none.
//
// unsupported: no CUDA in this build, or no device (says which). resource_exhausted: the
// device's memory is full. internal: CUDA's own error, by name. A buffer belongs to the
// device that was current when it was made. Copies wait for what was started before.
// A stream is a cudaStream_t; null is the device's own.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "kernels/base/status.h"

namespace nibble::cuda {

struct DeviceInfo {
  std::string name;
  int multiprocessors = 0;
  int major = 0, minor = 0;  // compute capability
  int64_t memory = 0, l2_bytes = 0;
};
Result<DeviceInfo> device_info();  // of the current device
// Whether its tensor cores multiply INT4 by INT4: Ampere's and Ada's do; from Hopper on
// the instruction is made of others.
inline bool has_int4_products(const DeviceInfo& device) { return device.major == 8; }
Status use_device(int index);  // from now on this thread's current one

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceBuffer();
  static Result<DeviceBuffer> allocate(int64_t bytes);
  static Result<DeviceBuffer> copy_of(const void* data, int64_t bytes);
  void* data() const { return data_; }
  int64_t size() const { return size_; }
  Status fill(int byte);
  Status download(void* to) const;  // size() bytes

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

Status synchronize();  // with everything started on the device

// Between host and device memory, after everything started on the stream; waits.
Status copy_in(void* device, const void* host, int64_t bytes, void* stream);
Status copy_out(void* host, const void* device, int64_t bytes, void* stream);

class Stream {
 public:
  Stream() = default;
  Stream(Stream&& other) noexcept { std::swap(handle_, other.handle_); }
  Stream& operator=(Stream&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Stream();
  static Result<Stream> create();
  void* handle() const { return handle_; }
  Status synchronize() const;

 private:
  void* handle_ = nullptr;
};

// What `start` starts on a stream, to be started again at the cost of one launch. Kernels
// keep the pointers and numbers that they were started with.
class Graph {
 public:
  Graph() = default;
  Graph(Graph&& other) noexcept { std::swap(executable_, other.executable_); }
  Graph& operator=(Graph&& other) noexcept {
    std::swap(executable_, other.executable_);
    return *this;
  }
  ~Graph();
  static Result<Graph> capture(void* stream, const std::function<Status()>& start);
  Status launch(void* stream) const;

 private:
  void* executable_ = nullptr;
};

}  // namespace nibble::cuda
