#include "kernels/runtime/kv_cache.h"

#include <algorithm>

namespace nibble {

Result<std::unique_ptr<KvCache>> KvCache::create(const Program& program,
                                                 const std::vector<KvScheme>& schemes,
                                                 int64_t capacity) {
  auto cache = std::make_unique<KvCache>();
  cache->capacity_ = capacity;
  for (size_t i = 0; i < program.states.size(); ++i) {
    const ProgramState& state = program.states[i];
    const int64_t width = state.kv_heads * state.head_dim;
    NIBBLE_ASSIGN_OR_RETURN(KvRows keys, KvRows::create(schemes[i].keys, capacity, width,
                                                        schemes[i].key_scale));
    NIBBLE_ASSIGN_OR_RETURN(KvRows values, KvRows::create(schemes[i].values, capacity,
                                                          width, schemes[i].value_scale));
    cache->keys_.push_back(std::move(keys));
    cache->values_.push_back(std::move(values));
  }
  return cache;
}

void KvCache::truncate(int64_t length) {
  length_ = std::clamp<int64_t>(length, 0, length_);
  for (KvRows& rows : keys_) rows.truncate(length_);
  for (KvRows& rows : values_) rows.truncate(length_);
}

int64_t KvCache::bytes() const {
  int64_t total = 0;
  for (const KvRows& rows : keys_) total += rows.bytes();
  for (const KvRows& rows : values_) total += rows.bytes();
  return total;
}

int64_t KvCache::bytes_for(const Program& program, const std::vector<KvScheme>& schemes,
                           int64_t capacity) {
  int64_t total = 0;
  for (size_t i = 0; i < program.states.size(); ++i) {
    const int64_t width = program.states[i].kv_heads * program.states[i].head_dim;
    total += KvRows::bytes_for(schemes[i].keys, capacity, width) +
             KvRows::bytes_for(schemes[i].values, capacity, width);
  }
  return total;
}

bool KvCache::fits(const Program& program, const std::vector<KvScheme>& schemes) const {
  if (program.states.size() != keys_.size()) return false;
  for (size_t i = 0; i < keys_.size(); ++i) {
    const ProgramState& state = program.states[i];
    if (keys_[i].width() != state.kv_heads * state.head_dim ||
        keys_[i].scheme() != schemes[i].keys ||
        values_[i].scheme() != schemes[i].values ||
        keys_[i].scale() != schemes[i].key_scale ||
        values_[i].scale() != schemes[i].value_scale) {
      return false;
    }
  }
  return true;
}

Status KvCache::append(size_t state, MatrixView<const float> k,
                       MatrixView<const float> v) {
  keys_[state].truncate(length_);
  values_[state].truncate(length_);
  NIBBLE_RETURN_IF_ERROR(keys_[state].append(k));
  return values_[state].append(v);
}

}  // namespace nibble
