// Starts a kernel of device.h on a GPU; for .cu files.
#pragma once

#include <cuda_runtime.h>

#include "kernels/base/status.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/grid.h"

namespace nibble::cuda {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocksPerMultiprocessor)
    kernel_entry(const __grid_constant__ typename Kernel::Params params) {
  Kernel::run(params);
}

inline Status cuda_status(const char* who, cudaError_t result) {
  if (result == cudaSuccess) return ok_status();
  (void)cudaGetLastError();  // said once: the next launch asks for its own
  return error(result == cudaErrorMemoryAllocation ? StatusCode::resource_exhausted
                                                   : StatusCode::internal,
               "[", who, "] cuda: ", cudaGetErrorName(result), ": ",
               cudaGetErrorString(result));
}

struct StreamLauncher {
  const char* who;
  cudaStream_t stream;
  Status status = ok_status();

  template <class Kernel>
  void launch(Grid grid, int64_t shared_bytes, const typename Kernel::Params& params) {
    // More than 48 KB of shared memory must be asked for, once a kernel and device;
    // asking again costs less than remembering it for every device.
    if (shared_bytes > (48 << 10)) {
      status = cuda_status(
          who, cudaFuncSetAttribute(kernel_entry<Kernel>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)));
      if (!status.ok()) return;
    }
    kernel_entry<Kernel>
        <<<dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                static_cast<unsigned>(grid.z)),
           Kernel::kThreads, static_cast<size_t>(shared_bytes), stream>>>(params);
    status = cuda_status(who, cudaGetLastError());
  }
};

}  // namespace nibble::cuda
