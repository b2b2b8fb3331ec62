#include "kernels/cuda/memory.h"

namespace nibble::cuda {
namespace {

Status no_cuda() {
  return error(StatusCode::unsupported,
               "[cuda] this build has no CUDA; build the preset `cuda`");
}

}  // namespace

Result<DeviceInfo> device_info() { return no_cuda(); }
DeviceBuffer::~DeviceBuffer() = default;
Result<DeviceBuffer> DeviceBuffer::allocate(int64_t) { return no_cuda(); }
Result<DeviceBuffer> DeviceBuffer::copy_of(const void*, int64_t) { return no_cuda(); }
Status DeviceBuffer::fill(int) { return no_cuda(); }
Status DeviceBuffer::download(void*) const { return no_cuda(); }
Status synchronize() { return no_cuda(); }

}  // namespace nibble::cuda
