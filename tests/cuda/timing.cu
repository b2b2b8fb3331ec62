#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/memory.h"
#include "timing.h"

namespace nibble::cuda {
namespace {

constexpr int kRounds = 30;

void check(cudaError_t result) {
  if (result == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", cudaGetErrorName(result), cudaGetErrorString(result));
  std::exit(1);
}
}  // namespace

double microseconds(int calls, const std::function<void(int, void*)>& call) {
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  call(0, stream);  // sets what a graph cannot hold
  check(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) call(i, stream);
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < kRounds + 3; ++i) {
    float milliseconds = 0;
    check(cudaEventRecord(begin, stream));
    check(cudaGraphLaunch(executable, stream));
    check(cudaEventRecord(end, stream));
    check(cudaEventSynchronize(end));
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 3) times.push_back(milliseconds);
  }
  std::sort(times.begin(), times.end());
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  check(cudaGraphExecDestroy(executable));
  check(cudaGraphDestroy(graph));
  check(cudaStreamDestroy(stream));
  return times[times.size() / 2] * 1000.0 / calls;
}

namespace {

__global__ void read_all(const uint4* from, int64_t count, unsigned* to) {
  unsigned sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    const uint4 a = __ldcs(from + i), b = __ldcs(from + i + step),
                c = __ldcs(from + i + 2 * step), d = __ldcs(from + i + 3 * step);
    sum += a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^
           d.y ^ d.z ^ d.w;
  }
  for (; i < count; i += step) sum += from[i].x;
  if (sum == 1) *to = sum;  // keeps the reads
}

}  // namespace

double read_bandwidth(int multiprocessors) {
  constexpr int64_t kBytes = int64_t{2} << 30;
  DeviceBuffer from = require(DeviceBuffer::allocate(kBytes)),
               to = require(DeviceBuffer::allocate(16));
  require(from.fill(0));
  const double time = microseconds(2, [&](int, void* stream) {
    read_all<<<static_cast<unsigned>(16 * multiprocessors), 256, 0,
               static_cast<cudaStream_t>(stream)>>>(
        static_cast<const uint4*>(from.data()), kBytes / 16,
        static_cast<unsigned*>(to.data()));
  });
  return kBytes / time;
}

}  // namespace nibble::cuda
