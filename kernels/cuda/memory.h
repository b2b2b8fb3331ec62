// The GPU and its memory, without CUDA's headers: cuda.cu or, in a build without nvcc,
// no_cuda.cpp, where every function says that there is none.
//
// unsupported: no CUDA in this build, or no device (says which). resource_exhausted: the
// device's memory is full. internal: CUDA's own error, by name. A buffer belongs to the
// device that was current when it was made. Copies wait for what was started before.
#pragma once

#include <cstdint>
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

}  // namespace nibble::cuda
