#include "kernels/runtime/kv_cache.h"

#include <algorithm>

namespace nibble {

KvCache::KvCache(const Program& program, int64_t capacity) : capacity_(capacity) {
  for (const ProgramState& state : program.states) {
    const size_t size = static_cast<size_t>(capacity * state.kv_heads * state.head_dim);
    keys_.emplace_back(size);
    values_.emplace_back(size);
  }
}

void KvCache::truncate(int64_t length) {
  length_ = std::clamp<int64_t>(length, 0, length_);
}

int64_t KvCache::bytes() const {
  size_t values = 0;
  for (const std::vector<float>& keys : keys_) values += 2 * keys.size();
  return static_cast<int64_t>(values * sizeof(float));
}

bool KvCache::fits(const Program& program) const {
  if (program.states.size() != keys_.size()) return false;
  for (size_t i = 0; i < keys_.size(); ++i) {
    const ProgramState& state = program.states[i];
    if (static_cast<int64_t>(keys_[i].size()) !=
        capacity_ * state.kv_heads * state.head_dim) {
      return false;
    }
  }
  return true;
}

}  // namespace nibble
