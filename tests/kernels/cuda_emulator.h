// Runs the CUDA kernels on a machine without a GPU: the same source, one thread at a
// time.
//
//   emulate<Kernel>(grid, shared_bytes, params, order)
//
// Blocks run one after the other, the threads of a block as fibers that change places at
// barriers and warp functions alone. So what a kernel reads of what another thread wrote
// without a barrier between them depends on the order; tests run several orders and ask
// for the same bits, which finds such races. Shared memory starts as 0xff, NaN in every
// float. A copy_async16 writes 0xff at once and the data only at copies_arrived.
//
// Stops the process with a message, as a GPU would hang or fault: a barrier or a warp
// function that not all threads reach, a grid beyond CUDA's, a read that is not aligned,
// shared memory beyond what the launch asked for (by a page that cannot be touched).
// GuardedArray does the same for device memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/grid.h"

namespace nibble::cuda {

enum class Order : uint8_t { forward, backward, mixed };  // of threads and of blocks
inline constexpr Order kOrders[] = {Order::forward, Order::backward, Order::mixed};

void emulate_blocks(Grid grid, int threads, int64_t shared_bytes, Order order,
                    void (*run)(const void*), const void* params);

template <class Kernel>
void emulate(Grid grid, int64_t shared_bytes, const typename Kernel::Params& params,
             Order order) {
  emulate_blocks(
      grid, Kernel::kThreads, shared_bytes, order,
      [](const void* p) { Kernel::run(*static_cast<const typename Kernel::Params*>(p)); },
      &params);
}

// The launcher of the dispatch functions (kernels/ops/*/cuda_dispatch.h).
struct Emulator {
  Order order = Order::forward;
  template <class Kernel>
  void launch(Grid grid, int64_t shared_bytes, const typename Kernel::Params& params) {
    emulate<Kernel>(grid, shared_bytes, params, order);
  }
};

// Memory that ends at a page that cannot be touched; 16-byte aligned, filled with 0xff.
class GuardedBytes {
 public:
  explicit GuardedBytes(int64_t bytes);
  ~GuardedBytes();
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t *pages_, *data_;
  int64_t size_;
};

template <class T>
class GuardedArray {
 public:
  explicit GuardedArray(int64_t count)
      : bytes_(count * static_cast<int64_t>(sizeof(T))), count_(count) {}
  explicit GuardedArray(const std::vector<T>& values)
      : GuardedArray(static_cast<int64_t>(values.size())) {
    std::memcpy(bytes_.data(), values.data(), values.size() * sizeof(T));
  }
  T* data() const { return reinterpret_cast<T*>(bytes_.data()); }
  std::vector<T> copy() const { return std::vector<T>(data(), data() + count_); }

 private:
  GuardedBytes bytes_;
  int64_t count_;
};

}  // namespace nibble::cuda
