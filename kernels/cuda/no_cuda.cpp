#include "kernels/cuda/memory.h"

namespace nibble::cuda {
namespace {

Status no_cuda() {
  return error(StatusCode::unsupported,
               "[cuda] this build has no CUDA; build the preset `cuda`");
}

}  // namespace

Result<DeviceInfo> device_info() { return no_cuda(); }
Status use_device(int) { return no_cuda(); }
DeviceBuffer::~DeviceBuffer() = default;
Result<DeviceBuffer> DeviceBuffer::allocate(int64_t) { return no_cuda(); }
Result<DeviceBuffer> DeviceBuffer::copy_of(const void*, int64_t) { return no_cuda(); }
Status DeviceBuffer::fill(int) { return no_cuda(); }
Status DeviceBuffer::download(void*) const { return no_cuda(); }
Status synchronize() { return no_cuda(); }
Status copy_in(void*, const void*, int64_t, void*) { return no_cuda(); }
Status copy_out(void*, const void*, int64_t, void*) { return no_cuda(); }
Stream::~Stream() = default;
Result<Stream> Stream::create() { return no_cuda(); }
Status Stream::synchronize() const { return no_cuda(); }
Graph::~Graph() = default;
Result<Graph> Graph::capture(void*, const std::function<Status()>&) { return no_cuda(); }
Status Graph::launch(void*) const { return no_cuda(); }

}  // namespace nibble::cuda
