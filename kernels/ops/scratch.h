// A 64-byte aligned buffer that only grows: the working memory of one thread's kernels.
//
// Made thread_local by its users, so steady runs allocate nothing; a buffer that is outgrown
// becomes half as large again, so that sizes that follow a context's length allocate seldom.
// Not for ISA files (std::).
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace nibble {

template <class T>
class Scratch {
 public:
  // At least n elements, contents unspecified. Earlier pointers are void after a growth.
  T* get(size_t n) {
    if (n > size_) {
      const size_t room = n > size_ + size_ / 2 ? n : size_ + size_ / 2;
      // 64 = the widest vector and the cache line; aligned_alloc wants a multiple of it.
      const size_t bytes = (room * sizeof(T) + 63) / 64 * 64;
      data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
      size_ = room;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

}  // namespace nibble
