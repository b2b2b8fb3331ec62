// An allocator for memory that is read from end to end: where it is large, in pages of
// 2 MiB, so that reading it costs few page walks.
//
// A hint that the system may ignore, given before the first touch (Bytes::allocate does
// the same for weights). std::bad_alloc as with new. Safe from any thread.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace nibble {

template <class T>
struct HugePages {
  using value_type = T;
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;

  HugePages() = default;
  template <class Other>
  HugePages(const HugePages<Other>&) {}

  static bool large(std::size_t n) { return n * sizeof(T) >= 2 * kHugePage; }
  T* allocate(std::size_t n) {
    if (!large(n)) return static_cast<T*>(::operator new(n * sizeof(T)));
    void* data = ::operator new(n * sizeof(T), std::align_val_t{kHugePage});
    (void)madvise(data, n * sizeof(T), MADV_HUGEPAGE);
    return static_cast<T*>(data);
  }
  void deallocate(T* data, std::size_t n) {
    if (!large(n)) return ::operator delete(data);
    ::operator delete(data, std::align_val_t{kHugePage});
  }
  bool operator==(const HugePages&) const { return true; }
};

}  // namespace nibble
