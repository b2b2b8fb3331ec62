// Keys and values of the positions seen so far, one pair a program state, under any
// scheme that a cache can have (kernels/scheme/kv_scheme.h).
//
// create: the scheme's errors. Memory is taken there, for `capacity` positions.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/ops/kv_attention/kv_rows.h"
#include "kernels/program/program.h"

namespace nibble {

class KvCache {
 public:
  // schemes: one a state, in the order of program.states.
  static Result<std::unique_ptr<KvCache>> create(const Program& program,
                                                 const std::vector<KvScheme>& schemes,
                                                 int64_t capacity);
  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  void truncate(int64_t length);  // forget positions >= length
  int64_t bytes() const;          // of the whole capacity
  // The same of a cache that is not made.
  static int64_t bytes_for(const Program& program, const std::vector<KvScheme>& schemes,
                           int64_t capacity);
  // Made for states of these sizes, stored under these schemes.
  bool fits(const Program& program, const std::vector<KvScheme>& schemes) const;
  // Rows [length, kv_heads * head_dim] of state i.
  KvRows& keys(size_t state) { return keys_[state]; }
  KvRows& values(size_t state) { return values_[state]; }
  // Appends a layer's rows of the positions that are being run (again, after a run that
  // failed). advance() says that every layer has them.
  Status append(size_t state, MatrixView<const float> k, MatrixView<const float> v);
  void advance(int64_t tokens) { length_ += tokens; }

 private:
  int64_t length_ = 0;
  int64_t capacity_ = 0;
  std::vector<KvRows> keys_, values_;
};

}  // namespace nibble
