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

  void empty() {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (bytes_ > 0) drop_oldest();
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
      Size& size = sizes_[block];
      size.used = ++clock_;
      if (!size.waiting.empty()) {
        memory = size.waiting.back();
        size.waiting.pop_back();
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
    if (!is_pooled(block)) return std::free(memory);
    const std::lock_guard<std::mutex> lock(mine.mutex_);
    Size& size = mine.sizes_[block];
    size.used = ++mine.clock_;
    size.waiting.push_back(memory);
    mine.bytes_ += block;
    while (mine.bytes_ > kMost) mine.drop_oldest();
  }

  struct Size {
    std::vector<char*> waiting;
    uint64_t used = 0;  // when a block of this size was last taken or given
  };

  // A block of the size that was not asked for the longest: what an earlier stage left.
  void drop_oldest() {
    auto oldest = sizes_.end();
    for (auto at = sizes_.begin(); at != sizes_.end(); ++at) {
      const bool has = !at->second.waiting.empty();
      if (has && (oldest == sizes_.end() || at->second.used < oldest->second.used))
        oldest = at;
    }
    std::free(oldest->second.waiting.back());
    oldest->second.waiting.pop_back();
    bytes_ -= oldest->first;
  }

  std::mutex mutex_;
  std::map<size_t, Size> sizes_;
  size_t bytes_ = 0;  // that wait
  uint64_t clock_ = 0;
};

}  // namespace

void empty_memory_pool() { PooledAllocator::instance().empty(); }

void use_pooled_allocator() { c10::SetCPUAllocator(&PooledAllocator::instance(), 1); }

}  // namespace nibble
