// Keys and values of the positions seen so far, f32, one pair a program state.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/program/program.h"

namespace nibble {

class KvCache {
 public:
  KvCache(const Program& program, int64_t capacity);
  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  void truncate(int64_t length);  // forget positions >= length
  int64_t bytes() const;
  bool fits(const Program& program) const;  // made for states of these sizes
  // Rows [capacity, kv_heads * head_dim] of state i (the order of program.states).
  float* keys(size_t state) { return keys_[state].data(); }
  float* values(size_t state) { return values_[state].data(); }
  void advance(int64_t tokens) { length_ += tokens; }

 private:
  int64_t length_ = 0;
  int64_t capacity_ = 0;
  std::vector<std::vector<float>> keys_, values_;
};

}  // namespace nibble
