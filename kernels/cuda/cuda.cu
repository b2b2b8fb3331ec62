#include "kernels/cuda/launch.h"
#include "kernels/cuda/memory.h"

namespace nibble::cuda {

Result<DeviceInfo> device_info() {
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted != cudaSuccess || count == 0) {
    return error(StatusCode::unsupported, "[cuda] a CUDA device is needed; found none (",
                 cudaGetErrorName(counted), ")");
  }
  int device = 0;
  cudaDeviceProp properties;
  NIBBLE_RETURN_IF_ERROR(cuda_status("cuda", cudaGetDevice(&device)));
  NIBBLE_RETURN_IF_ERROR(
      cuda_status("cuda", cudaGetDeviceProperties(&properties, device)));
  return DeviceInfo{.name = properties.name,
                    .multiprocessors = properties.multiProcessorCount,
                    .major = properties.major,
                    .minor = properties.minor,
                    .memory = static_cast<int64_t>(properties.totalGlobalMem),
                    .l2_bytes = properties.l2CacheSize};
}

DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }

Result<DeviceBuffer> DeviceBuffer::allocate(int64_t bytes) {
  DeviceBuffer buffer;
  NIBBLE_RETURN_IF_ERROR(
      cuda_status("cuda", cudaMalloc(&buffer.data_, static_cast<size_t>(bytes))));
  buffer.size_ = bytes;
  return std::move(buffer);  // nvcc moves a local only when told to
}

Result<DeviceBuffer> DeviceBuffer::copy_of(const void* data, int64_t bytes) {
  NIBBLE_ASSIGN_OR_RETURN(DeviceBuffer buffer, allocate(bytes));
  NIBBLE_RETURN_IF_ERROR(
      cuda_status("cuda", cudaMemcpy(buffer.data_, data, static_cast<size_t>(bytes),
                                     cudaMemcpyHostToDevice)));
  return std::move(buffer);  // nvcc moves a local only when told to
}

Status DeviceBuffer::fill(int byte) {
  return cuda_status("cuda", cudaMemset(data_, byte, static_cast<size_t>(size_)));
}

Status DeviceBuffer::download(void* to) const {
  return cuda_status(
      "cuda", cudaMemcpy(to, data_, static_cast<size_t>(size_), cudaMemcpyDeviceToHost));
}

Status synchronize() { return cuda_status("cuda", cudaDeviceSynchronize()); }

}  // namespace nibble::cuda
