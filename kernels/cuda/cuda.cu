#include "kernels/cuda/launch.h"
#include "kernels/cuda/memory.h"

namespace nibble::cuda {

Status use_device(int index) {
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  if (counted != cudaSuccess || index < 0 || index >= count) {
    return error(StatusCode::unsupported, "[cuda] device ", index, " is needed; found ",
                 counted == cudaSuccess ? count : 0, " (", cudaGetErrorName(counted),
                 ")");
  }
  return cuda_status("cuda", cudaSetDevice(index));
}

Result<DeviceInfo> device_info() {
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
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

namespace {

cudaStream_t stream_of(void* handle) { return static_cast<cudaStream_t>(handle); }

Status copy(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind,
            void* stream) {
  NIBBLE_RETURN_IF_ERROR(cuda_status(
      "cuda",
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, stream_of(stream))));
  return cuda_status("cuda", cudaStreamSynchronize(stream_of(stream)));
}

}  // namespace

Status copy_in(void* device, const void* host, int64_t bytes, void* stream) {
  return copy(device, host, bytes, cudaMemcpyHostToDevice, stream);
}
Status copy_out(void* host, const void* device, int64_t bytes, void* stream) {
  return copy(host, device, bytes, cudaMemcpyDeviceToHost, stream);
}

Stream::~Stream() {
  if (handle_ != nullptr) cudaStreamDestroy(stream_of(handle_));
}
Result<Stream> Stream::create() {
  Stream stream;
  cudaStream_t handle = nullptr;
  NIBBLE_RETURN_IF_ERROR(
      cuda_status("cuda", cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)));
  stream.handle_ = handle;
  return std::move(stream);  // nvcc moves a local only when told to
}
Status Stream::synchronize() const {
  return cuda_status("cuda", cudaStreamSynchronize(stream_of(handle_)));
}

Graph::~Graph() {
  if (executable_ != nullptr)
    cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
}
Result<Graph> Graph::capture(void* stream, const std::function<Status()>& start) {
  NIBBLE_RETURN_IF_ERROR(cuda_status(
      "cuda",
      cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal)));
  const Status started = start();
  cudaGraph_t graph = nullptr;  // the capture ends, whatever it held
  const Status ended =
      cuda_status("cuda", cudaStreamEndCapture(stream_of(stream), &graph));
  if (!started.ok() || !ended.ok()) {
    if (graph != nullptr) cudaGraphDestroy(graph);
    return started.ok() ? ended : started;
  }
  cudaGraphExec_t executable = nullptr;
  const Status made = cuda_status("cuda", cudaGraphInstantiate(&executable, graph, 0));
  cudaGraphDestroy(graph);
  NIBBLE_RETURN_IF_ERROR(made);
  Graph captured;
  captured.executable_ = executable;
  return std::move(captured);  // nvcc moves a local only when told to
}
Status Graph::launch(void* stream) const {
  return cuda_status("cuda", cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_),
                                             stream_of(stream)));
}

}  // namespace nibble::cuda
