#include "ptq/calibration/pooled_allocator.h"

#include <c10/core/CPUAllocator.h>

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace nibble {
namespace {

constexpr size_t kSmallest = size_t{64} << 10, kLargest = size_t{32} << 20;
constexpr size_t kMost = size_t{64} << 20;  // that wait; recipes/recipe/predict.cpp counts it
constexpr size_t kHead = 64;  // before the data: its block's size; keeps the alignment

// Sizes of eight a power of two, so that a block is at most an eighth too large.
size_t rounded(size_t bytes) {
  const size_t step = std::bit_floor(bytes) / 8;
  return (bytes + step - 1) / step * step;
}

class PooledAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes == 0 ? nullptr : take(bytes);
    return {data, data, &PooledAllocator::give, at::Device(at::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &PooledAllocator::give; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }

  static PooledAllocator& instance() {
    static PooledAllocator* const allocator = new PooledAllocator;  // outlives all tensors
    return *allocator;
  }

 private:
  static bool is_pooled(size_t block) { return block >= kSmallest && block <= kLargest; }

  void* take(size_t bytes) {
    const size_t wanted = bytes + kHead;
    const size_t block = is_pooled(wanted) ? rounded(wanted) : wanted;
    char* memory = nullptr;
    if (is_pooled(block)) {
      const std::lock_guard<std::mutex> lock(mutex_);
      std::vector<char*>& waiting = waiting_[block];
      if (!waiting.empty()) {
        memory = waiting.back();
        waiting.pop_back();
        bytes_ -= block;
      }
    }
    if (memory == nullptr) {
      memory = static_cast<char*>(std::aligned_alloc(kHead, (block + kHead - 1) / kHead * kHead));
      if (memory == nullptr) throw std::bad_alloc();
    }
    std::memcpy(memory, &block, sizeof(block));
    return memory + kHead;
  }

  static void give(void* data) {
    if (data == nullptr) return;
    char* memory = static_cast<char*>(data) - kHead;
    size_t block = 0;
    std::memcpy(&block, memory, sizeof(block));
    PooledAllocator& mine = instance();
    if (is_pooled(block)) {
      const std::lock_guard<std::mutex> lock(mine.mutex_);
      if (mine.bytes_ + block <= kMost) {
        mine.waiting_[block].push_back(memory);
        mine.bytes_ += block;
        return;
      }
    }
    std::free(memory);
  }

  std::mutex mutex_;
  std::map<size_t, std::vector<char*>> waiting_;
  size_t bytes_ = 0;
};

}  // namespace

void use_pooled_allocator() { c10::SetCPUAllocator(&PooledAllocator::instance(), 1); }

}  // namespace nibble
